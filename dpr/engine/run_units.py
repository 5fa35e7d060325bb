"""Running the units of a stage that have no record yet, on any executor."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from dpr.engine.executor import Executor
from dpr.engine.progress import Progress
from dpr.engine.stage import R, Stage, U
from dpr.engine.stage_meter import StageMeter
from dpr.errors import UnitError
from dpr.formats.records import read_record
from dpr.store import PARALLEL_READS, Store
from dpr.store.requests import move_outside, take_counts


def run_units(store: Store, executor: Executor, progress: Progress, stage: Stage[U, R], meter: StageMeter) -> list[R]:
    """Run the units that have no record yet, and return the results of all, in the order of the units.

    `meter` measures the progress of the stage, also if it fails. Raises UnitError unless each unit has exactly one
    result.
    """
    move_outside()  # requests before this belong to no stage
    try:
        return _run(store, executor, progress, stage, meter)
    finally:
        meter.end(executor.take_lost(), take_counts())


def _run(store: Store, executor: Executor, progress: Progress, stage: Stage[U, R], meter: StageMeter) -> list[R]:
    units = stage.units
    results = _finished(store, [unit.record for unit in units], stage.kind)
    todo = [unit for unit in units if unit.record not in results]
    meter.plan(units, todo)
    total_rows = sum(unit.rows for unit in units)
    progress.start(stage.name, total_rows, total_rows - sum(unit.rows for unit in todo))
    missing = {unit.record: unit for unit in todo}
    for done in executor.run(stage.name, stage.work, todo):
        if done.record not in missing:
            raise UnitError(
                f"stage {stage.name} returned {done.record}, which is not one of its units or was returned before; "
                "start the run again"
            )
        meter.add(missing.pop(done.record), done.result)
        results[done.record] = done.result
        progress.advance(done.result.rows, stage.watch(done.result) if stage.watch else "")
    if missing:
        raise UnitError(f"stage {stage.name} lost {len(missing)} of {len(todo)} units; start the run again to do them")
    done_before = len(units) - len(todo)
    progress.finish(f"{len(todo)} of {len(units)} units done now, {done_before} were done before")
    return [results[unit.record] for unit in units]


def _finished(store: Store, names: Sequence[str], kind: type[R]) -> dict[str, R]:
    """Return the results that exist already, by record name; every folder is listed once."""
    folders = {name.rpartition("/")[0] + "/" for name in names}
    present = {info.name for folder in folders for info in store.list(folder)} & set(names)
    with ThreadPoolExecutor(PARALLEL_READS) as pool:
        found = pool.map(lambda name: (name, read_record(store, name, kind)), sorted(present))
        return {name: result for name, result in found if result is not None}
