"""Counts what a stage has done, for its report; the report may be taken at any moment, in any thread."""

import time
from collections.abc import Mapping, Sequence

from dpr.engine.executor import Lost
from dpr.engine.run_state import StageReport
from dpr.engine.stage import Unit
from dpr.formats.records import Result


class StageMeter:
    """Measures one stage from now on."""

    def __init__(self, stage: str) -> None:
        self._started = time.monotonic()
        self._counted = StageReport(
            stage=stage, units=0, done_before=0, rows=0, seconds=0.0, read_bytes=0, written_bytes=0
        )
        self._seconds: float | None = None
        """Once the stage has ended."""

    def plan(self, units: Sequence[Unit], todo: Sequence[Unit]) -> None:
        """Note all units of the stage, and those that have no record yet."""
        planned_rows = sum(unit.rows for unit in units)
        self._change(
            units=len(units),
            done_before=len(units) - len(todo),
            waiting=len(todo),
            planned_rows=planned_rows,
            rows_before=planned_rows - sum(unit.rows for unit in todo),
        )

    def add(self, unit: Unit, result: Result) -> None:
        """Note that a unit is done."""
        before = self._counted
        self._change(
            waiting=before.waiting - 1,
            rows=before.rows + result.rows,
            read_bytes=before.read_bytes + unit.read_bytes,
            written_bytes=before.written_bytes + sum(ref.size_bytes for ref in result.objects()),
        )

    def end(self, lost: Lost, requests: Mapping[str, int]) -> None:
        """Note that the stage has ended, whole or by an error."""
        self._change(repeated=lost.units, lost_workers=lost.workers, requests=dict(requests))
        self._seconds = self._elapsed()

    def report(self) -> StageReport:
        """Return what was counted so far."""
        seconds = self._elapsed() if self._seconds is None else self._seconds
        return self._counted.model_copy(update={"seconds": seconds})

    def _elapsed(self) -> float:
        return round(time.monotonic() - self._started, 3)

    def _change(self, **fields: object) -> None:
        self._counted = self._counted.model_copy(update=fields)
