"""Running units: a stage is a chain of steps over units, and an executor decides where each step runs.

Every unit goes through all steps of its stage and comes out as exactly one `Record`.
"""

import os
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal, Protocol, TypeVar

from dpr.errors import UnitError
from dpr.index.hardware import Hardware
from dpr.records import Document, Record, read_record, write_record
from dpr.store import Store, open_store

Unit = dict[str, Any]
"""JSON values, and `bytes` for bulk data between steps; `record` names the unit's record."""
Shared = TypeVar("Shared")

_READERS = 16


@dataclass(frozen=True)
class Step:
    """One operator of a stage: `make(*args)` gives what is called once a unit."""

    make: Callable[..., Callable[[Unit], Unit]]
    args: tuple[Any, ...] = ()
    on: Literal["task", "actor", "encoder", "trainer", "coder"] = "task"
    """`task`: cheap to make, so made anew for every unit; `actor`: made once in long-lived workers; `encoder`: an actor
    that holds the model and the GPU or CPU threads that the recipe gives it, called for several units at once;
    `trainer`: a task that holds a whole GPU where there is any, else all CPUs of a machine; `coder`: actors that share
    GPUs where there are any, else tasks."""


class Cluster(Document):
    """What an executor has to run units on."""

    cpus: int
    encoders: int
    """That run at once, at most."""
    gpus_per_encoder: float
    overlap: bool
    """Whether several units, and the steps of different units, run at once."""


class Executor(Protocol):
    """Where units run."""

    def begin(self, stage: str, steps: Sequence[Step]) -> None:
        """Load what the steps need while other stages run, if that is of use; `run` or `leave` must follow."""

    def leave(self, stage: str) -> None:
        """Let go what `begin` took, since `run` will not be called."""

    def run(self, stage: str, steps: Sequence[Step], units: Sequence[Unit]) -> Iterator[Unit]:
        """Send every unit through all steps; results come in any order. Raises UnitError if one fails."""

    def encoder_threads(self) -> int | None:
        """CPU threads that an encoder may use; None: as many as PyTorch takes."""

    def tokenizer_threads(self) -> int:
        """CPU threads that one tokeniser may use."""

    def hardware(self) -> Hardware:
        """What a `trainer` or `coder` finds where it is placed."""

    def cluster(self) -> Cluster:
        """What there is to run on, as of now."""

    def share(self, make: Callable[..., Shared], *args: Any) -> Callable[[], Shared]:
        """Compute a value once, off the driver and when it is needed; give a handle that workers resolve without
        copying."""


class Progress(Protocol):
    """What a person watches."""

    def start(self, stage: str, total_rows: int, done_rows: int) -> None:
        """A stage begins; `done_rows` are there from an earlier run."""

    def advance(self, rows: int, said: str = "") -> None:
        """So many more rows are done; `said`: what else is worth watching, as of now."""

    def say(self, about: str, text: str) -> None:
        """What was chosen, and why, before it is done."""

    def finish(self, said: str) -> None:
        """The stage is done."""


class LocalExecutor:
    """All steps in this process, one unit after another."""

    def begin(self, stage: str, steps: Sequence[Step]) -> None:
        pass

    def leave(self, stage: str) -> None:
        pass

    def run(self, stage: str, steps: Sequence[Step], units: Sequence[Unit]) -> Iterator[Unit]:  # noqa: ARG002
        operators = [step.make(*step.args) for step in steps] if units else []
        for unit in units:
            for operator in operators:
                unit = operator(unit)
            yield unit

    def encoder_threads(self) -> int | None:
        return None

    def tokenizer_threads(self) -> int:
        return os.cpu_count() or 1  # nothing else runs meanwhile

    def hardware(self) -> Hardware:
        return Hardware.here()

    def cluster(self) -> Cluster:
        gpus = 1.0 if self.hardware().device else 0.0
        return Cluster(cpus=os.cpu_count() or 1, encoders=1, gpus_per_encoder=gpus, overlap=False)

    def share(self, make: Callable[..., Shared], *args: Any) -> Callable[[], Shared]:
        return cache(lambda: make(*args))


class Finish:
    """The last operator of every stage: a step whose result has the record as `done`, and then the writing of it.

    A unit that has its record is left as it is: Ray repeats a task whose worker was lost, also where it was lost
    between writing the record and answering.
    """

    def __init__(self, store_url: str, step: Step) -> None:
        self._store, self._operator = open_store(store_url), step.make(*step.args)

    def __call__(self, unit: Unit) -> Unit:
        record = read_record(self._store, unit["record"])
        if record is None:
            record = Record.model_validate_json(self._operator(unit)["done"])
            write_record(self._store, unit["record"], record)
        return {"record": unit["record"], "done": record.to_bytes()}


@dataclass(frozen=True)
class Stage:
    """Units to send through steps. A unit's `rows` are the planned ones, its `read_bytes` what it will read."""

    name: str
    steps: Sequence[Step]
    units: Sequence[Unit]
    watch: Callable[[Record], str] | None = None
    """Called with each new record: what to show of it."""


class StageReport(Document):
    """What a stage did now, and what it found done."""

    stage: str
    units: int
    done_before: int
    """Units that an earlier attempt has done."""
    rows: int
    seconds: float
    read_bytes: int
    """Sizes of the objects and corpus slices that the units read."""
    written_bytes: int


def run_units(store: Store, executor: Executor, progress: Progress, stage: Stage) -> tuple[list[Record], StageReport]:
    """Run the units that have no record yet, and return the records of all, in the order of the units.

    Raises UnitError unless each unit has one record.
    """
    units, started = stage.units, time.monotonic()
    done = _finished(store, [unit["record"] for unit in units])
    todo = [unit for unit in units if unit["record"] not in done]
    progress.start(stage.name, sum(u["rows"] for u in units), sum(u["rows"] for u in units if u["record"] in done))
    missing = {unit["record"] for unit in todo}
    rows = written_bytes = 0
    for result in executor.run(stage.name, _finishing(store, stage.steps), todo):
        if result["record"] not in missing:
            raise UnitError(f"stage {stage.name} gave {result['record']} twice or unasked; start the run again")
        missing.remove(result["record"])
        record = Record.model_validate_json(result["done"])
        done[result["record"]] = record
        rows += record.rows
        written_bytes += sum(ref.size_bytes for ref in record.objects)
        progress.advance(record.rows, stage.watch(record) if stage.watch else "")
    if missing:
        raise UnitError(f"stage {stage.name} lost {len(missing)} of {len(todo)} units; start the run again to do them")
    before = len(units) - len(todo)
    progress.finish(f"{len(todo)} of {len(units)} units done now, {before} were done before")
    report = StageReport(
        stage=stage.name,
        units=len(units),
        done_before=before,
        rows=rows,
        seconds=round(time.monotonic() - started, 3),
        read_bytes=sum(unit.get("read_bytes", 0) for unit in todo),
        written_bytes=written_bytes,
    )
    return [done[unit["record"]] for unit in units], report


def begin_stage(store: Store, executor: Executor, name: str, steps: Sequence[Step]) -> None:
    """Begin a stage that `run_units` will be called for, with these steps."""
    executor.begin(name, _finishing(store, steps))


def _finishing(store: Store, steps: Sequence[Step]) -> list[Step]:
    """The steps, of which the last also writes the record."""
    return [*steps[:-1], Step(Finish, (store.url, steps[-1]), on=steps[-1].on)]


def _finished(store: Store, names: Sequence[str]) -> dict[str, Record]:
    folders = {name.rpartition("/")[0] + "/" for name in names}
    there = {info.name for folder in folders for info in store.list(folder)}
    with ThreadPoolExecutor(_READERS) as pool:
        present = [name for name in names if name in there]
        records = pool.map(lambda name: read_record(store, name), present)
        return {name: record for name, record in zip(present, records, strict=True) if record is not None}
