"""Running units: a stage is a chain of steps over units, and an executor decides where each step runs.

Every unit goes through all steps of its stage and comes out as exactly one `Record`.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Literal, Protocol, TypeVar

from dpr.errors import UnitError
from dpr.index.hardware import Hardware
from dpr.records import Record, read_record, write_record
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


class Executor(Protocol):
    """Where units run."""

    def run(self, stage: str, steps: Sequence[Step], units: Sequence[Unit]) -> Iterator[Unit]:
        """Send every unit through all steps; results come in any order. Raises UnitError if one fails."""

    def encoder_threads(self) -> int | None:
        """CPU threads that an encoder may use; None: as many as PyTorch takes."""

    def tokenizer_threads(self) -> int:
        """CPU threads that one tokeniser may use."""

    def hardware(self) -> Hardware:
        """What a `trainer` or `coder` finds where it is placed."""

    def share(self, make: Callable[..., Shared], *args: Any) -> Callable[[], Shared]:
        """Compute a large value once, off the driver, and give a handle that workers resolve without copying."""


class Progress(Protocol):
    """What a person watches."""

    def start(self, stage: str, total_rows: int, done_rows: int) -> None:
        """A stage begins; `done_rows` are there from an earlier run."""

    def advance(self, rows: int) -> None:
        """So many more rows are done."""

    def finish(self, said: str) -> None:
        """The stage is done."""


class _Shared:
    def __init__(self, value: Any) -> None:
        self._value = value

    def __call__(self) -> Any:
        return self._value


class LocalExecutor:
    """All steps in this process, one unit after another."""

    def run(self, stage: str, steps: Sequence[Step], units: Sequence[Unit]) -> Iterator[Unit]:  # noqa: ARG002
        operators = [step.make(*step.args) for step in steps]
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

    def share(self, make: Callable[..., Shared], *args: Any) -> Callable[[], Shared]:
        return _Shared(make(*args))


class WriteRecord:
    """The last step of every stage: `unit["done"]` is the record to write."""

    def __init__(self, store_url: str) -> None:
        self._store = open_store(store_url)

    def __call__(self, unit: Unit) -> Unit:
        record = Record.model_validate_json(unit["done"])
        write_record(self._store, unit["record"], record)
        return {"record": unit["record"], "done": unit["done"]}


def run_units(
    store: Store, executor: Executor, progress: Progress, stage: str, steps: Sequence[Step], units: Sequence[Unit]
) -> list[Record]:
    """Run the units that have no record yet, and return the records of all, in the order of `units`.

    `unit["rows"]` is the planned number of rows, for progress. Raises UnitError unless each unit has one record.
    """
    done = _finished(store, [unit["record"] for unit in units])
    todo = [unit for unit in units if unit["record"] not in done]
    progress.start(stage, sum(u["rows"] for u in units), sum(u["rows"] for u in units if u["record"] in done))
    planned = {unit["record"]: unit["rows"] for unit in todo}
    if todo:
        for result in executor.run(stage, [*steps, Step(WriteRecord, (store.url,))], todo):
            if planned.pop(result["record"], None) is None:
                raise UnitError(f"stage {stage} gave {result['record']} twice or unasked; start the run again")
            record = Record.model_validate_json(result["done"])
            done[result["record"]] = record
            progress.advance(record.rows)
    if planned:
        raise UnitError(f"stage {stage} lost {len(planned)} of {len(todo)} units; start the run again to do them")
    progress.finish(f"{len(todo)} of {len(units)} units done now, {len(units) - len(todo)} were done before")
    return [done[unit["record"]] for unit in units]


def _finished(store: Store, names: Sequence[str]) -> dict[str, Record]:
    folders = {name.rpartition("/")[0] + "/" for name in names}
    there = {info.name for folder in folders for info in store.list(folder)}
    with ThreadPoolExecutor(_READERS) as pool:
        present = [name for name in names if name in there]
        records = pool.map(lambda name: read_record(store, name), present)
        return {name: record for name, record in zip(present, records, strict=True) if record is not None}
