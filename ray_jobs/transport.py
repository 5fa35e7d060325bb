"""The one adapter between steps, which take typed values, and Ray's rows, in which these travel between processes.

A value is pickled, as Ray pickles everything that it sends between its own processes. Nothing pickled is stored.
"""

import pickle
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import pyarrow as pa

from dpr.engine.stage import Step, Work
from dpr.store.requests import count_elsewhere, take_counts
from ray_jobs.heartbeats import Handle, beating, start_actor

Row = dict[str, bytes]
_VALUE, _COUNTS = "value", "counts"
ROWS = pa.schema({_VALUE: pa.binary(), _COUNTS: pa.binary()})
"""The columns of a block of rows."""


def pack(value: object, counts: Mapping[str, int] = MappingProxyType({})) -> Row:
    """Return a row of a Ray dataset that holds `value`, and the requests to the store that its worker counted."""
    return {_VALUE: pickle.dumps(value, pickle.HIGHEST_PROTOCOL), _COUNTS: pickle.dumps(dict(counts))}


def unpack(row: Row) -> Any:
    """Return the value that `pack` put into a row; its counted requests are added to those of this process."""
    count_elsewhere(pickle.loads(row[_COUNTS]))
    return pickle.loads(row[_VALUE])


class RowOperator:
    """A step between rows, made once in a long-lived worker."""

    def __init__(self, step: Step[Any, Any], heartbeats: Handle) -> None:
        self._name, self._heartbeats = step.name, heartbeats
        start_actor(heartbeats)
        self._operator = step.make()

    def __call__(self, row: Row) -> Row:
        unit = unpack(row)
        with beating(self._heartbeats, self._name, unit.record):
            result = self._operator(unit)
        return pack(result, take_counts())


def shared_task(make: Callable[..., Any]) -> Callable[..., tuple[Any, dict[str, int]]]:
    """Return a function that makes a value, and also returns the requests that its worker counted meanwhile."""

    def make_and_count(*args: Any) -> tuple[Any, dict[str, int]]:
        return make(*args), take_counts()

    make_and_count.__name__ = make.__name__  # by which Ray titles its worker process
    return make_and_count


def operator_class(step: Step[Any, Any]) -> type[RowOperator]:
    """Return `RowOperator` under the step's name, by which Ray titles its worker processes."""
    return type(step.name, (RowOperator,), {})


def row_task(step: Step[Any, Any], heartbeats: Handle) -> Callable[[Row], Row]:
    """Return a function that makes and calls a step for each row."""

    def run_step(row: Row) -> Row:
        return run_work(Work.of(step), unpack(row), heartbeats)

    run_step.__name__ = step.name
    return run_step


def call(prepare: Callable[[], None]) -> None:
    """Call `prepare`; a worker that does so need not import what the driver does."""
    prepare()


def run_work(work: Work[Any, Any], unit: Any, heartbeats: Handle) -> Row:
    """Make and call all steps one after another, in this process; returns the packed result."""
    for step in work.steps:
        with beating(heartbeats, step.name, unit.record):
            unit = step.make()(unit)
    return pack(unit, take_counts())


def run_all(work: Work[Any, Any], wait_for_units: Callable[[], Sequence[Row]], heartbeats: Handle) -> list[Row]:
    """Make all steps once, wait for units, and send each through; returns the packed results."""
    operators = [(step.name, step.make()) for step in work.steps]
    results = []
    for row in wait_for_units():
        unit = unpack(row)
        for name, operator in operators:
            with beating(heartbeats, name, unit.record):
                unit = operator(unit)
        results.append(pack(unit, take_counts()))
    return results
