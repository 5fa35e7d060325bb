"""A local folder laid over a store: reads see both, writes go to the folder alone."""

import heapq
from collections.abc import Iterator
from pathlib import Path

from dpr.store.base import ObjectInfo, Store
from dpr.store.local import LocalStore


class OverlayStore:
    """A store for trying a run without writing to the run's own store. See Store for the methods.

    `delete` and `leftovers` reach the folder alone: objects of the store below stay visible.
    """

    def __init__(self, folder: Path, below: Store) -> None:
        self._above, self._below = LocalStore(folder), below
        self.url = below.url

    def _holder(self, name: str) -> Store:
        return self._above if self._above.exists(name) else self._below

    def get(self, name: str) -> bytes:
        return self._holder(name).get(name)

    def get_range(self, name: str, start: int, length: int) -> bytes:
        return self._holder(name).get_range(name, start, length)

    def size(self, name: str) -> int:
        return self._holder(name).size(name)

    def exists(self, name: str) -> bool:
        return self._holder(name).exists(name)

    def put(self, name: str, data: bytes) -> None:
        self._above.put(name, data)

    def put_if_absent(self, name: str, data: bytes) -> bool:
        return not self.exists(name) and self._above.put_if_absent(name, data)

    def put_file_if_absent(self, name: str, path: Path) -> bool:
        return not self.exists(name) and self._above.put_file_if_absent(name, path)

    def fetch(self, name: str, path: Path) -> None:
        self._holder(name).fetch(name, path)

    def local_path(self, name: str) -> Path | None:
        return self._holder(name).local_path(name)

    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        above = {info.name: info for info in self._above.list(prefix)}
        rest = (info for info in self._below.list(prefix) if info.name not in above)
        return heapq.merge(above.values(), rest, key=lambda info: info.name)

    def delete(self, name: str) -> None:
        self._above.delete(name)

    def leftovers(self, before: float, *, delete: bool = False) -> tuple[ObjectInfo, ...]:
        return self._above.leftovers(before, delete=delete)

    def needless_rights(self) -> tuple[str, ...]:
        return self._below.needless_rights()
