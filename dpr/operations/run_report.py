"""The report of a run: what it found, did and measured, with times. Stored beside the run, never in a snapshot.

`dpr.operations.make_report` makes it, `dpr.operations.run_page` draws it.
"""

from typing import Literal

from pydantic import Field

from dpr.corpus.rows import LeftOut
from dpr.engine.run_state import Ending, StageReport
from dpr.formats.gate_report import GateReport
from dpr.formats.records import Document
from dpr.index.contents import Verification
from dpr.operations.bill import Bill, all_requests, total
from dpr.operations.estimate import Cost
from dpr.plurals import by_reason, counted
from dpr.stages.drift import Drift
from dpr.stages.embed_meter import STEPS, Encoding

MAX_LEFT_OUT = 1_000


class Found(Document):
    """The findings of scan and diff."""

    rows: int = 0
    """Rows of the corpus, usable or not."""
    passages: int = 0
    new: int = 0
    embedded: int = 0
    """New passages to embed; the others borrow the vector of the same text."""
    borrowed: int = 0
    why_embedded: dict[str, int] = Field(default_factory=dict)
    """Rows that were to be embedded, by reason; `dpr.formats.changes.Reason` explains each."""
    why_copied: dict[str, int] = Field(default_factory=dict)
    """Rows whose vectors were copied, likewise: of new passages, and of segments that were joined or compacted."""
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
    """The choice and its reasons."""

    factory: str
    trained: bool
    """False: the codebook was kept."""
    reason: str
    drift: Drift | None
    """None: no codebook before, or too few rows since it was trained."""
    reasons: list[str]
    index_bytes: int
    shards: list[ShardReport]


class EarlierAttempt(Document):
    """An attempt that did not finish its run, as the run's report describes it."""

    attempt: str
    seconds: float
    last_stage: str
    """The stage that it was in; empty: none had begun."""
    ending: Ending
    bill: Bill


class RunReport(Document):
    """`runs/RUN/reports/ATTEMPT.json`, of every attempt; `runs/RUN/report.json`, of the one that ended the run."""

    run: str
    attempt: str
    """Sorts by time: when it began, and a random part."""
    ending: Ending
    base: int | None
    """Snapshot that the run built upon."""
    seconds: float
    """Duration of this attempt."""
    found: Found = Found()
    """All zero if the attempt did not get that far."""
    trusted_files: int = 0
    """Corpus files that were not read, since their size and time (or ETag) were those of an earlier scan."""
    left_out: list[LeftOut] = Field(default_factory=list)
    """Corpus files that are not read, with the reasons: at most `MAX_LEFT_OUT`."""
    notes: list[str] = Field(default_factory=list)
    """Notes on the corpus files, a sentence each: how many are left out, hidden or empty."""
    unknown_answers: int = 0
    """Passage ids that answer questions of the recipe and are not in the corpus."""
    stages: list[StageReport]
    """In order; the last one may have units that are not done, if the attempt ended in it."""
    encoding: Encoding = Encoding()
    long: Literal["cut", "split"] = "cut"
    """What the recipe does with texts beyond the encoder's token limit."""
    index: IndexReport | None = None
    """None: the attempt did not get that far; the same holds for the gate."""
    gate: GateReport | None = None
    cost: Cost
    """Bytes, times and dollars are those of this attempt."""
    estimate: Cost | None = None
    """The estimate of `dpr plan` for this run, on this machine; None: there was none."""
    other_requests: dict[str, int] = Field(default_factory=dict)
    """Requests outside of stages, counted as those of stages: planning, lease, reads and writes between stages,
    publishing. The stored report lacks those that follow it."""
    bill: Bill = Bill()
    """Of this attempt."""
    earlier: list[EarlierAttempt] = Field(default_factory=list)
    """Attempts of the same run before this one, oldest first."""

    @property
    def requests(self) -> dict[str, int]:
        """Return all requests of this attempt by class, and the bytes that they moved."""
        return all_requests(self.stages, self.other_requests)

    @property
    def whole_bill(self) -> Bill:
        """Return the bill of all attempts of the run together."""
        return total([*(each.bill for each in self.earlier), self.bill])

    @property
    def last_stage(self) -> str:
        """Return the stage that began last; empty: none began."""
        return self.stages[-1].stage if self.stages else ""

    def lines(self) -> list[str]:
        """Return sentences on what the table of stages does not show."""
        found, encoding, index = self.found, self.encoding, self.index
        lines = self._bill_lines()
        lines += [
            f"corpus: {counted(found.rows, 'row')}, {counted(found.passages, 'passage')}: {found.new:,} new, "
            f"{found.embedded:,} to embed ({found.borrowed:,} have the text of another), {found.dead:,} gone, "
            f"{found.restored:,} back"
        ]
        for what, why in (("embedded", found.why_embedded), ("copied", found.why_copied)):
            if why:
                lines.append(f"{what}: " + ", ".join(f"{rows:,} {reason}" for reason, rows in why.items()))
        lines += [f"corpus: {note}" for note in self.notes]
        if self.trusted_files:
            lines.append(
                f"scan: {counted(self.trusted_files, 'file')} not read: same size and time (or ETag) as before"
            )
        if found.quarantined:
            lines.append(f"quarantine: {by_reason(found.quarantined)}")
        if self.unknown_answers:
            lines.append(f"gate: {self.unknown_answers:,} passage ids that answer questions are not in the corpus")
        if encoding.passages:
            seconds = ", ".join(f"{name} {encoding.seconds.get(step, 0.0):,.1f} s" for step, name in STEPS.items())
            lines.append(
                f"embedding: {counted(encoding.tokens, 'token')}; {seconds}; encoder busy {encoding.busy_share:.2f}; "
                f"waited for {encoding.waits_for}"
            )
            lines += [f"encoder: {choice}" for choice in encoding.choices]
        lines += self._cut_lines()
        if index is None:
            return lines
        codebook = "new codebook" if index.trained else "codebook kept"
        return [*lines, f"index: {index.factory}, {index.index_bytes / 1e6:,.1f} MB; {codebook}: {index.reason}"]

    def _cut_lines(self) -> list[str]:
        """Return sentences on what passages and questions lost to the token limit; none if they lost nothing."""
        counts = [(self.encoding.cut, "embedded passages", self.encoding.passages)]
        if self.gate is not None:
            counts.append((self.gate.questions_cut, f"{self.gate.question_kind} of the gate", self.gate.questions))
        split, windows = self.found.split_passages, self.found.windows
        lines = [f"long texts: {counted(split, 'passage')} split into {counted(windows, 'window')}"] if windows else []
        lines += [f"long texts: {cut.describe(what, texts)}" for cut, what, texts in counts if cut.texts]
        if self.encoding.cut.texts and self.long == "cut":
            lines.append("long texts: set corpus.long to split, and passages are read whole, in windows")
        return lines

    def _bill_lines(self) -> list[str]:
        """Return sentences on lost workers, earlier attempts, and the cost of all of it."""
        lines = []
        if lost := sum(stage.lost_workers for stage in self.stages):
            again = sum(stage.repeated for stage in self.stages)
            lines.append(f"workers: {lost:,} lost, {counted(again, 'unit')} begun again")
        if self.earlier:
            seconds = sum(each.seconds for each in self.earlier)
            lines.append(f"attempts: {len(self.earlier):,} before this one, which took {seconds:,.1f} s")
        bill = self.whole_bill
        if bill.dollars:
            each = bill.per_million(self.encoding.passages)
            per_million = f"; {each:,.2f} for a million embedded passages" if each is not None else ""
            lines.append(
                f"bill: {bill.dollars:,.4f} dollars: {bill.gpu_hours:,.3f} GPU-hours, {bill.requests:,} requests "
                f"({bill.request_dollars:,.4f}){per_million}"
            )
        return lines
