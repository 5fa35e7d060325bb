"""How typed values travel between the processes of a Ray: the one adapter between steps and Ray's rows.

A value is pickled, as Ray pickles everything that it sends between its own processes. Nothing pickled is stored.
"""

import pickle
from collections.abc import Callable
from typing import Any

from dpr.engine.stage import Step, Work

Row = dict[str, bytes]
_FIELD = "value"


def pack(value: object) -> Row:
    """Return a row of a Ray dataset that holds `value`."""
    return {_FIELD: pickle.dumps(value, pickle.HIGHEST_PROTOCOL)}


def unpack(row: Row) -> Any:
    """Return the value that `pack` put into a row."""
    return pickle.loads(row[_FIELD])


class RowOperator:
    """A step between rows, made once in a long-lived worker."""

    def __init__(self, step: Step[Any, Any]) -> None:
        self._operator = step.make()

    def __call__(self, row: Row) -> Row:
        return pack(self._operator(unpack(row)))


def operator_class(step: Step[Any, Any]) -> type[RowOperator]:
    """Return `RowOperator` under the step's name, by which Ray titles its worker processes."""
    return type(step.name, (RowOperator,), {})


def row_task(step: Step[Any, Any]) -> Callable[[Row], Row]:
    """Return a function that makes and calls a step anew for each row."""

    def run_step(row: Row) -> Row:
        return pack(step.make()(unpack(row)))

    run_step.__name__ = step.name
    return run_step


def run_work(work: Work[Any, Any], unit: Any) -> Any:
    """Make and call all steps one after another, in this process."""
    for step in work.steps:
        unit = step.make()(unit)
    return unit
