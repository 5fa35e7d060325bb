"""The report of a run: what it found, did and measured, with times. Stored beside the run, never in a snapshot."""

import datetime
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import Field, ValidationError

from dpr import layout
from dpr.corpus.diff import Changes
from dpr.manifest import SnapshotBody
from dpr.pipeline.estimate import Cost
from dpr.pipeline.execute import StageReport
from dpr.pipeline.meter import STEPS, Encoding
from dpr.pipeline.retrain import CodebookChoice, Drift
from dpr.records import Document, Record
from dpr.retrieve import cache_folder


class Found(Document):
    """What the scan found."""

    rows: int = 0
    """Of the corpus, usable or not."""
    passages: int = 0
    new: int = 0
    embedded: int = 0
    """Of the new ones; the others borrow the vector of the same text."""
    borrowed: int = 0
    dead: int = 0
    restored: int = 0
    duplicates: int = 0
    quarantined: dict[str, int] = Field(default_factory=dict)
    """Rows by reason, those that the encoder refused included."""


class IndexReport(Document):
    """What was chosen, and why."""

    factory: str
    trained: bool
    """False: the codebook was kept."""
    why: str
    drift: Drift | None
    """None: no codebook before, or too few rows since it was trained."""
    reasons: list[str]
    index_bytes: int
    shards: list[dict[str, Any]]
    """What merging each shard verified."""


class Costs(Document):
    """Estimate beside outcome."""

    estimate: Cost | None
    """None: `dpr plan` was not asked about this run on this machine."""
    outcome: Cost
    """Bytes, times and dollars are those of this attempt."""


def remember_estimate(run_id: str, cost: Cost) -> None:
    """Keep an estimate on this machine, for the report of the run that it is for."""
    path = _estimate_file(run_id)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(cost.to_bytes())


def remembered_estimate(run_id: str) -> Cost | None:
    """The last estimate for a run, if there is one on this machine that can be read."""
    try:
        return Cost.model_validate_json(_estimate_file(run_id).read_bytes())
    except (OSError, ValidationError):
        return None


def _estimate_file(run_id: str) -> Path:
    return cache_folder() / "estimates" / f"{run_id}.json"


class Report(Document):
    """`runs/RUN/report.json`."""

    run: str
    base: int | None
    """Snapshot that the run built upon."""
    started_at: str
    """UTC, ISO 8601."""
    seconds: float
    """Of this attempt."""
    found: Found
    stages: list[StageReport]
    encoding: Encoding
    index: IndexReport
    gate: dict[str, Any]
    costs: Costs

    def lines(self) -> list[str]:
        """What the table of stages does not say, a sentence each."""
        found, encoding, index = self.found, self.encoding, self.index
        said = [
            f"corpus: {found.rows:,} rows, {found.passages:,} passages: {found.new:,} new, {found.embedded:,} to embed "
            f"({found.borrowed:,} have the text of another), {found.dead:,} gone, {found.restored:,} back"
        ]
        if found.quarantined:
            reasons = ", ".join(f"{count:,} {reason}" for reason, count in sorted(found.quarantined.items()))
            said.append(f"quarantine: {sum(found.quarantined.values()):,} rows: {reasons}")
        if encoding.passages:
            seconds = ", ".join(f"{name} {encoding.seconds[step]:,.1f} s" for step, name in STEPS.items())
            said.append(
                f"embedding: {encoding.tokens:,} tokens; {seconds}; encoder busy {encoding.busy_share:.2f}, "
                f"{encoding.limit_share:.2f} of the measured limit; waited for {encoding.waits_for}"
            )
            said += [f"encoder: {choice}" for choice in encoding.choices]
        codebook = "new codebook" if index.trained else "codebook kept"
        return [*said, f"index: {index.factory}, {index.index_bytes / 1e6:,.1f} MB; {codebook}: {index.why}"]


class Notes:
    """What a run notes for its report on the way."""

    def __init__(self, run_id: str) -> None:
        self._run_id = run_id
        self._clock, self._started = time.monotonic(), datetime.datetime.now(datetime.UTC)
        self.found = Found()
        self.reasons: Counter[str] = Counter()
        self.stages: list[StageReport] = []
        self.encoding = Encoding()
        self.shards: list[dict[str, Any]] = []
        self.new_row_bytes = 0.0
        """Stored size of a new passage before it has a vector."""

    def scanned(self, scans: Sequence[Record], changes: Changes) -> None:
        """What the scan found."""
        counted = changes.model_dump(include={"passages", "new", "borrowed", "dead", "restored", "duplicates"})
        rows = sum(scan.rows + scan.facts["quarantined"] for scan in scans)
        self.found = Found(rows=rows, embedded=changes.embed_rows, **counted)
        shards = layout.scan_shards(self._run_id)
        stored = [ref.size_bytes for scan in scans for ref in scan.objects if ref.name.startswith(shards)]
        self.new_row_bytes = sum(stored) / max(1, sum(scan.facts["new"] for scan in scans))

    def report(self, base: int | None, choice: CodebookChoice, body: SnapshotBody, costs: Costs) -> Report:
        """All of it."""
        return Report(
            run=self._run_id,
            base=base,
            started_at=self._started.isoformat(timespec="seconds"),
            seconds=round(time.monotonic() - self._clock, 3),
            found=self.found.model_copy(update={"quarantined": dict(self.reasons)}),
            stages=self.stages,
            encoding=self.encoding,
            index=IndexReport(
                factory=choice.plan.factory,
                trained=choice.reuse is None,
                why=choice.reason,
                drift=choice.drift,
                reasons=choice.plan.reasons,
                index_bytes=body.index.size_bytes,
                shards=self.shards,
            ),
            gate=body.gate,
            costs=costs,
        )
