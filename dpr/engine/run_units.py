"""Running the units of a stage that have no record yet, on any executor."""

import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from pydantic import Field

from dpr.engine.executor import Executor
from dpr.engine.progress import Progress
from dpr.engine.stage import R, Stage, U
from dpr.errors import UnitError
from dpr.formats.records import Document, read_record
from dpr.store import PARALLEL_READS, Store
from dpr.store.requests import move_outside, take_counts


class StageReport(Document):
    """What a stage did now, and what it found done."""

    stage: str
    units: int
    done_before: int
    """Units that an earlier attempt or an earlier run has done."""
    rows: int
    seconds: float
    read_bytes: int
    """Sizes of the objects and corpus slices that the units read."""
    written_bytes: int
    requests: dict[str, int] = Field(default_factory=dict)
    """Requests to an object store by class (GET, PUT, LIST, DELETE), and bytes that they moved; empty for a folder."""


def run_units(store: Store, executor: Executor, progress: Progress, stage: Stage[U, R]) -> tuple[list[R], StageReport]:
    """Run the units that have no record yet, and return the results of all, in the order of the units.

    Raises UnitError unless each unit has exactly one result.
    """
    units, started = stage.units, time.monotonic()
    move_outside()  # requests before this belong to no stage
    results = _finished(store, [unit.record for unit in units], stage.kind)
    todo = [unit for unit in units if unit.record not in results]
    total_rows = sum(unit.rows for unit in units)
    progress.start(stage.name, total_rows, total_rows - sum(unit.rows for unit in todo))
    missing = {unit.record for unit in todo}
    rows = written_bytes = 0
    for done in executor.run(stage.name, stage.work, todo):
        if done.record not in missing:
            raise UnitError(
                f"stage {stage.name} returned {done.record}, which is not one of its units or was returned before; "
                "start the run again"
            )
        missing.remove(done.record)
        results[done.record] = done.result
        rows += done.result.rows
        written_bytes += sum(ref.size_bytes for ref in done.result.objects())
        progress.advance(done.result.rows, stage.watch(done.result) if stage.watch else "")
    if missing:
        raise UnitError(f"stage {stage.name} lost {len(missing)} of {len(todo)} units; start the run again to do them")
    done_before = len(units) - len(todo)
    progress.finish(f"{len(todo)} of {len(units)} units done now, {done_before} were done before")
    report = StageReport(
        stage=stage.name,
        units=len(units),
        done_before=done_before,
        rows=rows,
        seconds=round(time.monotonic() - started, 3),
        read_bytes=sum(unit.read_bytes for unit in todo),
        written_bytes=written_bytes,
        requests=take_counts(),
    )
    return [results[unit.record] for unit in units], report


def _finished(store: Store, names: Sequence[str], kind: type[R]) -> dict[str, R]:
    """Return the results that exist already, by record name; every folder is listed once."""
    folders = {name.rpartition("/")[0] + "/" for name in names}
    present = {info.name for folder in folders for info in store.list(folder)} & set(names)
    with ThreadPoolExecutor(PARALLEL_READS) as pool:
        found = pool.map(lambda name: (name, read_record(store, name, kind)), sorted(present))
        return {name: result for name, result in found if result is not None}
