"""What lies in the simulated store: objects in memory, and a journal of what was done to them.

Whatever breaks a law at the moment it happens is found here: an object that must never change and is replaced, or a
snapshot that names what is not there.
"""

import hashlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace

from dpr.errors import MissingObjectError
from dpr.formats import layout
from dpr.store.base import PROBES, ObjectInfo
from simulation.machine import EPOCH

MAY_CHANGE = ("lease/", PROBES, layout.READERS)
"""Names of objects that are put again, or that come and go."""


@dataclass(frozen=True)
class Stored:
    """One object."""

    data: bytes
    modified: float
    order: int
    """Higher than that of all objects that were created before."""
    by: int
    """Process that created it."""


@dataclass
class Objects:
    """The truth about a store, which no fault reaches."""

    clock: Callable[[], float]
    """Seconds since the simulation began."""
    clock_step: float = 0.0
    """Seconds that the store's clock is wrong by."""
    stored: dict[str, Stored] = field(default_factory=dict)
    order: int = 0
    violations: list[str] = field(default_factory=list)
    deleted: bool = False
    """Whether garbage was collected: anything but leases, probes and markers."""
    created: Callable[[str, Stored], None] | None = None
    """Called with each new object."""

    def put(self, name: str, data: bytes, by: int) -> None:
        """Create or replace an object."""
        before = self.stored.get(name)
        if before is not None and before.data != data and not name.startswith(MAY_CHANGE):
            self.violations.append(f"overwritten: process {by} replaced {name} of process {before.by} by other bytes")
        self._create(name, data, by)

    def put_if_absent(self, name: str, data: bytes, by: int) -> bool:
        """Create an object if there is none."""
        if name in self.stored:
            return False
        self._create(name, data, by)
        return True

    def delete(self, name: str) -> None:
        """Remove an object."""
        self.deleted |= name in self.stored and not name.startswith(MAY_CHANGE)
        self.stored.pop(name, None)

    def get(self, name: str) -> bytes:
        """Return the bytes of an object."""
        try:
            return self.stored[name].data
        except KeyError:
            raise MissingObjectError(f"object {name} is not in the simulated store") from None

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        """Yield what is there."""
        for name in sorted(name for name in self.stored if name.startswith(prefix)):
            yield ObjectInfo(name, len(self.stored[name].data), self.stored[name].modified)

    def adopt(self, stored: Mapping[str, "Stored"], older_by: float) -> None:
        """Hold these objects, as if they had been created this many seconds earlier."""
        self.stored = {name: replace(each, modified=EPOCH - older_by) for name, each in stored.items()}
        self.order = max((each.order for each in stored.values()), default=0)

    def sha256(self, name: str) -> str:
        return hashlib.sha256(self.stored[name].data).hexdigest()

    def _create(self, name: str, data: bytes, by: int) -> None:
        self.order += 1
        stored = Stored(data, EPOCH + self.clock() + self.clock_step, self.order, by)
        self.stored[name] = stored
        if self.created is not None:
            self.created(name, stored)
