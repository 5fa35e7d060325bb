"""Undisturbed histories, with which disturbed ones are compared: each is run once in a process."""

from dataclasses import dataclass
from pathlib import Path

from dpr.formats import layout
from dpr.formats.manifest import Snapshot
from simulation.actors import Driver, start_rollback_to
from simulation.corpora import Kind, Version
from simulation.objects import Stored
from simulation.world import CALM, World


@dataclass(frozen=True)
class Night:
    """A step of a history: a run of a corpus that published a snapshot."""

    version: Version


@dataclass(frozen=True)
class Rollback:
    """A step of a history: a snapshot's body was published again."""

    number: int


History = tuple[Night | Rollback, ...]


class Undisturbed:
    """The stores that histories lead to if nothing goes wrong."""

    def __init__(self, caches: Path) -> None:
        self._caches = caches
        self._stores: dict[tuple[Kind, History], dict[str, Stored]] = {}

    def store(self, kind: Kind, history: History) -> dict[str, Stored]:
        """Return the objects after a history."""
        if not history:
            return {}
        if (kind, history) not in self._stores:
            before = self.store(kind, history[:-1])
            world = World(0, CALM, kind, self._caches)
            world.objects.adopt(before, older_by=0.0)
            last = history[-1]
            if isinstance(last, Rollback):
                start_rollback_to(world, 0.0, last.number)
            else:
                Driver("undisturbed", last.version, kind).start(world, 0.0, lambda: 1.0)
            world.run()
            if world.violations:
                raise AssertionError(f"an undisturbed night of {kind} {history} failed: {world.violations}")
            self._stores[kind, history] = {
                name: stored for name, stored in world.objects.stored.items() if not name.startswith("lease/")
            }
        return self._stores[kind, history]

    def body(self, kind: Kind, history: History) -> bytes:
        """Return the body of the last snapshot after a history."""
        objects = self.store(kind, history)
        last = max(name for name in objects if name.startswith(layout.SNAPSHOTS))
        return Snapshot.model_validate_json(objects[last].data).body.to_bytes()
