"""The report of a run: what it found, did and measured, with times. Stored beside the run, never in a snapshot."""

import datetime
import time
import uuid
from typing import Literal

from pydantic import Field, ValidationError

from dpr.corpus.rows import LeftOut
from dpr.engine.run_units import StageReport
from dpr.formats import layout
from dpr.formats.manifest import GateReport, SnapshotBody
from dpr.formats.records import Document
from dpr.index.contents import Verification
from dpr.operations.estimate import Cost, measured_cost
from dpr.run import Run
from dpr.stages.drift import Drift
from dpr.stages.embed_meter import STEPS, Encoding
from dpr.stages.made import Indexed, Segments
from dpr.stages.scan import plan_scan, trusted_files
from dpr.store import Store
from dpr.store.requests import move_outside

MAX_LEFT_OUT = 1_000


class Found(Document):
    """What scan and diff found."""

    rows: int = 0
    """Rows of the corpus, usable or not."""
    passages: int = 0
    new: int = 0
    embedded: int = 0
    """New passages to embed; the others borrow the vector of the same text."""
    borrowed: int = 0
    dead: int = 0
    restored: int = 0
    duplicates: int = 0
    split_passages: int = 0
    """Passages whose texts were split into windows; in the other counts each window is a passage."""
    windows: int = 0
    """Windows of these passages."""
    quarantined: dict[str, int] = Field(default_factory=dict)
    """Rows by reason, those that the encoder refused included."""


class ShardReport(Document):
    """One shard of the index."""

    segments: list[int]
    """Numbers of the segments that it holds rows of."""
    rows: int
    live_rows: int
    size_bytes: int
    verification: Verification | None
    """As merging verified it; None: an earlier run wrote it."""


class IndexReport(Document):
    """What was chosen, and why."""

    factory: str
    trained: bool
    """False: the codebook was kept."""
    reason: str
    drift: Drift | None
    """None: no codebook before, or too few rows since it was trained."""
    reasons: list[str]
    index_bytes: int
    shards: list[ShardReport]


class RunReport(Document):
    """`runs/RUN/reports/ATTEMPT.json`."""

    run: str
    attempt: str
    """Sorts by time: when it began, and a random part."""
    base: int | None
    """Snapshot that the run built upon."""
    seconds: float
    """Duration of this attempt."""
    found: Found
    trusted_files: int = 0
    """Corpus files that were not read, since their size and time (or ETag) were those of an earlier scan."""
    left_out: list[LeftOut] = Field(default_factory=list)
    """Corpus files that are not read, with the reasons: at most `MAX_LEFT_OUT`."""
    notes: list[str] = Field(default_factory=list)
    """What a person should know about the corpus files, a sentence each: how many are left out, hidden or empty."""
    unknown_answers: int = 0
    """Passage ids that answer questions of the recipe and are not in the corpus."""
    stages: list[StageReport]
    encoding: Encoding
    long: Literal["cut", "split"] = "cut"
    """What became of passages beyond the encoder's token limit, by the recipe."""
    index: IndexReport
    gate: GateReport
    cost: Cost
    """Bytes, times and dollars are those of this attempt."""
    other_requests: dict[str, int] = Field(default_factory=dict)
    """Requests outside of stages, counted as those of stages: planning, lease, reads and writes between stages,
    publishing. The stored report lacks those that follow it."""

    def lines(self) -> list[str]:
        """Return what the table of stages does not show, a sentence each."""
        found, encoding, index = self.found, self.encoding, self.index
        lines = [
            f"corpus: {found.rows:,} rows, {found.passages:,} passages: {found.new:,} new, {found.embedded:,} to embed "
            f"({found.borrowed:,} have the text of another), {found.dead:,} gone, {found.restored:,} back"
        ]
        lines += [f"corpus: {note}" for note in self.notes]
        if self.trusted_files:
            lines.append(f"scan: {self.trusted_files:,} files were not read: same size and time (or ETag) as before")
        if found.quarantined:
            reasons = ", ".join(f"{count:,} {reason}" for reason, count in sorted(found.quarantined.items()))
            lines.append(f"quarantine: {sum(found.quarantined.values()):,} rows: {reasons}")
        if self.unknown_answers:
            lines.append(f"gate: {self.unknown_answers:,} passage ids that answer questions are not in the corpus")
        if encoding.passages:
            seconds = ", ".join(f"{name} {encoding.seconds.get(step, 0.0):,.1f} s" for step, name in STEPS.items())
            lines.append(
                f"embedding: {encoding.tokens:,} tokens; {seconds}; encoder busy {encoding.busy_share:.2f}; "
                f"waited for {encoding.waits_for}"
            )
            lines += [f"encoder: {choice}" for choice in encoding.choices]
        lines += self._cut_lines()
        codebook = "new codebook" if index.trained else "codebook kept"
        return [*lines, f"index: {index.factory}, {index.index_bytes / 1e6:,.1f} MB; {codebook}: {index.reason}"]

    def _cut_lines(self) -> list[str]:
        """Return what passages and questions lost to the encoder's token limit; nothing for those that lost none."""
        counts = [
            (self.encoding.cut, "embedded passages", self.encoding.passages),
            (self.gate.questions_cut, f"{self.gate.question_kind} of the gate", self.gate.questions),
        ]
        split, windows = self.found.split_passages, self.found.windows
        lines = [f"long texts: {split:,} passages were split into {windows:,} windows"] if windows else []
        lines += [f"long texts: {cut.describe(what, texts)}" for cut, what, texts in counts if cut.texts]
        if self.encoding.cut.texts and self.long == "cut":
            lines.append("long texts: set corpus.long to split, and passages are read whole, in windows")
        return lines


class Clock:
    """When an attempt began."""

    def __init__(self) -> None:
        self._started = time.monotonic()
        now = datetime.datetime.now(datetime.UTC)
        self.attempt = f"{now:%Y%m%dT%H%M%S.%fZ}-{uuid.uuid4().hex[:8]}"

    def seconds(self) -> float:
        """Return the seconds since then."""
        return round(time.monotonic() - self._started, 3)


def make_report(run: Run, clock: Clock, made: Segments, indexed: Indexed, body: SnapshotBody) -> RunReport:
    """Put together what an attempt found, did and measured."""
    encoding = Encoding.of([segment.result for segment in made.embedded])
    price = run.recipe.resources.price_per_gpu_hour
    return RunReport(
        run=run.run_id,
        attempt=clock.attempt,
        base=run.base.number if run.base else None,
        seconds=clock.seconds(),
        found=_found(made),
        trusted_files=trusted_files(plan_scan(run), run.plan.scanned),
        left_out=run.plan.corpus.left_out[:MAX_LEFT_OUT],
        notes=run.plan.corpus.notes(),
        unknown_answers=len(made.changes.unknown_answers),
        stages=run.stage_reports,
        encoding=encoding,
        long=run.recipe.corpus.long,
        index=_index_report(indexed, body),
        gate=body.gate,
        cost=measured_cost(run.stage_reports, encoding, run.executor.cluster(), price),
        other_requests=move_outside(),
    )


def _found(made: Segments) -> Found:
    changes = made.changes
    return Found(
        rows=sum(scanned.rows + scanned.unusable_rows for scanned in made.scans),
        passages=changes.rows,
        new=changes.new,
        embedded=changes.embed_rows,
        borrowed=changes.borrowed,
        dead=changes.dead,
        restored=changes.restored,
        duplicates=changes.duplicates,
        split_passages=sum(scanned.split_passages for scanned in made.scans),
        windows=sum(scanned.windows for scanned in made.scans),
        quarantined=dict(made.settled.reasons),
    )


def _index_report(indexed: Indexed, body: SnapshotBody) -> IndexReport:
    choice = indexed.choice
    return IndexReport(
        factory=choice.plan.factory,
        trained=choice.reuse is None,
        reason=choice.reason,
        drift=choice.drift,
        reasons=choice.plan.reasons,
        index_bytes=body.index.size_bytes,
        shards=_shard_reports(indexed, body),
    )


def _shard_reports(indexed: Indexed, body: SnapshotBody) -> list[ShardReport]:
    written = {result.shard.name: result.verification for result in indexed.shards}
    return [
        ShardReport(
            segments=shard.segments,
            rows=shard.rows,
            live_rows=shard.live_rows,
            size_bytes=shard.object.size_bytes,
            verification=written.get(shard.object.name),
        )
        for shard in body.index.shards
    ]


def put_report(store: Store, report: RunReport) -> None:
    """Store a report beside what else its run made."""
    store.put_if_absent(layout.report(report.run, report.attempt), report.to_bytes())


def latest_report(store: Store, run_id: str) -> RunReport | None:
    """Return the report of the last attempt of a run; None if there is none that this version can read."""
    names = [info.name for info in store.list(layout.reports(run_id))]
    if not names:
        return None
    try:
        return RunReport.model_validate_json(store.get(names[-1]))
    except ValidationError:  # of another version
        return None
