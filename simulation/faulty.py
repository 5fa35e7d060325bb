"""The store as one simulated process sees it: calls take time, fail, and arrive late; see Store for the methods."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

from dpr.errors import StoreError
from dpr.store.base import ObjectInfo, check_name, check_prefix, check_range, whole_copy
from simulation.faults import Faults
from simulation.objects import Objects
from simulation.scheduler import Killed, Process, Scheduler

T = TypeVar("T")


class FaultyStore:
    """One process's way to the objects. A process that was killed changes nothing any more."""

    def __init__(
        self, url: str, objects: Objects, scheduler: Scheduler, faults: Faults, trace: Callable[[str], None]
    ) -> None:
        self.url = url
        self._objects, self._scheduler, self._faults, self._trace = objects, scheduler, faults, trace

    def get(self, name: str) -> bytes:
        return self._call("get", name, lambda: self._objects.get(name))

    def get_range(self, name: str, start: int, length: int) -> bytes:
        check_range(start, length)
        return self._call("get_range", name, lambda: self._objects.get(name)[start : start + length])

    def size(self, name: str) -> int:
        return self._call("size", name, lambda: len(self._objects.get(name)))

    def exists(self, name: str) -> bool:
        return self._call("exists", name, lambda: name in self._objects.stored)

    def put(self, name: str, data: bytes) -> None:
        self._call("put", name, lambda: self._objects.put(name, data, self._pid))

    def put_if_absent(self, name: str, data: bytes) -> bool:
        return self._call("put_if_absent", name, lambda: self._objects.put_if_absent(name, data, self._pid))

    def put_file_if_absent(self, name: str, path: Path) -> bool:
        data = path.read_bytes()
        return self._call("put_file_if_absent", name, lambda: self._objects.put_if_absent(name, data, self._pid))

    def fetch(self, name: str, path: Path) -> None:
        data = self._call("fetch", name, lambda: self._objects.get(name))
        with whole_copy(self.url, name, path) as temporary:
            temporary.write_bytes(data)

    def local_path(self, name: str) -> Path | None:  # noqa: ARG002
        return None

    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        check_prefix(prefix)
        return iter(self._call("list", prefix, lambda: list(self._objects.list(prefix))))

    def delete(self, name: str) -> None:
        self._call("delete", name, lambda: self._objects.delete(name))

    def leftovers(self, before: float, *, delete: bool = False) -> tuple[ObjectInfo, ...]:  # noqa: ARG002
        return ()

    def needless_rights(self) -> tuple[str, ...]:
        return ()

    @property
    def _process(self) -> Process:
        task = self._scheduler.current
        assert task is not None
        return task.process

    @property
    def _pid(self) -> int:
        return int(self.url.rpartition("/")[2])

    def _call(self, method: str, name: str, effect: Callable[[], T]) -> T:
        if method != "list":
            check_name(name)
        process, scheduler, faults = self._process, self._scheduler, self._faults
        scheduler.sleep(faults.seconds())
        process.calls += 1
        fault = faults.next(method)
        self._trace(f"{process.pid} {method} {name}{'' if fault == 'none' else f' [{fault}]'}")
        if fault in ("stop", "sleep"):
            scheduler.stop(process, faults.stop_seconds(fault))
            scheduler.sleep(0.0)
        elif fault in ("late", "kill late", "doubled"):
            scheduler.later(faults.late_seconds(), lambda: self._arrive(method, name, effect))
        result = effect() if fault in ("none", "after", "doubled", "kill after", "stop", "pause", "sleep") else None
        if fault == "pause":
            scheduler.stop(process, faults.stop_seconds(fault))
        elif fault.startswith("kill"):
            scheduler.kill(process)
            raise Killed
        scheduler.sleep(faults.seconds())
        if fault in ("before", "after", "late"):
            raise StoreError(f"store {self.url}: {method} of {name} failed on purpose ({fault})")
        return result  # type: ignore[return-value]

    def _arrive(self, method: str, name: str, effect: Callable[[], object]) -> None:
        self._trace(f"{self._pid} {method} {name} [arrives]")
        effect()
