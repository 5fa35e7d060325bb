"""The state of a run, as it reports it: in its heartbeats, at the end of its lease, and in its reports."""

from typing import Literal

from pydantic import Field

from dpr.formats.records import Document, Identifier


class StageReport(Document):
    """The work of a stage in this attempt, and the work that it found done."""

    stage: str
    units: int
    done_before: int
    """Units that an earlier attempt or an earlier run has done."""
    waiting: int = 0
    """Units that are not done: the stage is still running, or it failed."""
    rows: int
    """Rows of the units that were done now."""
    planned_rows: int = 0
    """Rows of all units, as far as they are known before they are read."""
    rows_before: int = 0
    """Those of them that were done before."""
    seconds: float
    read_bytes: int
    """Sizes of the objects and corpus slices that the units read."""
    written_bytes: int
    requests: dict[str, int] = Field(default_factory=dict)
    """Requests to an object store by class (GET, PUT, LIST, DELETE), and bytes that they moved; empty for a folder."""
    repeated: int = 0
    """Units that were begun again, since the process that worked on them was lost."""
    lost_workers: int = 0
    """Processes that were lost while they worked on a unit."""

    @property
    def done(self) -> int:
        """Return how many units were done now."""
        return self.units - self.done_before - self.waiting


class Prices(Document):
    """Prices in dollars."""

    gpu_hour: float | None = None
    """None: not known."""
    thousand_reads: float = 0.0
    """1,000 requests of the class GET."""
    thousand_writes: float = 0.0
    """1,000 requests of the classes PUT and LIST."""


class Ending(Document):
    """How an attempt to carry out a run ended."""

    kind: Literal["published", "up to date", "stopped early", "refused", "failed", "interrupted", "died"]
    """`stopped early`: the command named a last stage (`--until`). `refused`: the gate did not admit the snapshot.
    `died`: the process never recorded its end, and another one took over the run."""
    exit_code: int | None
    """Exit code of the command; None: it died."""
    sentence: str
    snapshot: int | None = None
    """The snapshot that is live then, if the run got that far."""


class RunState(Document):
    """How far an attempt to carry out a run has come."""

    run: Identifier
    attempt: Identifier
    """Sorts by time: when it began, and a random part."""
    base: int | None
    """Snapshot that the run builds upon."""
    seconds: float
    """Since the attempt began."""
    stages: list[StageReport]
    """In the order in which they began; the last one may still be running."""
    gpus: float
    """GPUs that encoders hold while they embed."""
    prices: Prices
    expected_seconds: float | None = None
    """Estimated time of the stages; None: there was no estimate."""
    ending: Ending | None = None
    """None: it is still running."""
    is_reported: bool = False
    """Whether its report is stored."""
