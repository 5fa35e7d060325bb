"""What a stage is: typed units, the steps that each of them goes through, and the result that comes out.

A unit and a result are frozen values. mypy checks that the types of consecutive steps match. Only the
adapter in `ray_jobs` knows how values travel between processes.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Generic, Literal, Protocol, TypeVar

from dpr.formats.records import Result, read_record, write_record
from dpr.store import open_store

Place = Literal["task", "actor", "encoder", "trainer", "coder", "asker"]
"""Where a step runs. `task`: cheap to make, so it is made again for every unit. `actor`: made once, in a long-lived
worker. `encoder`: an actor that holds the model, and the GPU or CPU threads that the recipe gives it; it is called for
several units at once. `trainer`: a task that holds a whole GPU where there is one, else all CPUs of a machine. `coder`:
a task that shares a GPU where there is one. `asker`: a coder that does all units of its stage, since creating it takes
longer than a unit."""


class Tracked(Protocol):
    """A value that passes through steps; it names the record of the unit that it belongs to."""

    @property
    def record(self) -> str: ...


class Unit(Tracked, Protocol):
    """A unit of work as it was planned."""

    @property
    def rows(self) -> int:
        """Rows that are planned."""

    @property
    def read_bytes(self) -> int:
        """Bytes that the unit will read."""


A = TypeVar("A", bound=Tracked)
B = TypeVar("B", bound=Tracked)
C = TypeVar("C", bound=Tracked)
U = TypeVar("U", bound=Unit)
R = TypeVar("R", bound=Result)
R_co = TypeVar("R_co", bound=Result, covariant=True)
Out = TypeVar("Out")


@dataclass(frozen=True)
class Step(Generic[A, Out]):
    """One operator of a stage: `make()` returns a callable, called once a unit. It must be picklable."""

    name: str
    make: Callable[[], Callable[[A], Out]]
    on: Place = "task"


@dataclass(frozen=True)
class Work(Generic[A, B]):
    """A chain of steps, each of which takes the output of the one before."""

    steps: tuple[Step[Any, Any], ...]

    @classmethod
    def of(cls, step: Step[A, B]) -> "Work[A, B]":
        """Return the work of a single step."""
        return Work((step,))

    def then(self, step: Step[B, C]) -> "Work[A, C]":
        """Return the work with one more step."""
        return Work((*self.steps, step))


@dataclass(frozen=True)
class Done(Generic[R_co]):
    """The end of a unit: its record's name, and the result that the record holds."""

    record: str
    result: R_co


@dataclass(frozen=True)
class Stage(Generic[U, R]):
    """Units, and the work that turns each of them into a result."""

    name: str
    units: Sequence[U]
    kind: type[R]
    """The class of its results."""
    work: Work[U, Done[R]]
    watch: Callable[[R], str] | None = None
    """Called with each new result; returns the detail to show."""


class Recorded(Generic[A, R]):
    """The last operator of every stage: it computes the result and writes the record.

    A unit that has its record is not computed again: Ray repeats a task whose worker was lost, even if the record was
    written before. If two workers do the same unit, the first record counts for both.
    """

    def __init__(self, store_url: str, kind: type[R], make: Callable[[], Callable[[A], R]]) -> None:
        self._store, self._kind, self._operator = open_store(store_url), kind, make()

    def __call__(self, unit: A) -> Done[R]:
        result = read_record(self._store, unit.record, self._kind)
        if result is None:
            result = write_record(self._store, unit.record, self._operator(unit))
        return Done(unit.record, result)


def recorded(store_url: str, kind: type[R], step: Step[A, R]) -> Step[A, Done[R]]:
    """Return `step` as the last one of a stage: it also writes the unit's record."""
    return Step(step.name, partial(Recorded, store_url, kind, step.make), step.on)
