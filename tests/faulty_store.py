"""A store that fails on purpose, to show that a run which dies at any call is continued by starting it again."""

import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal, TypeVar

from dpr.errors import StoreError
from dpr.store.base import ObjectInfo, Store

T = TypeVar("T")
FailureMode = Literal["before", "after"]


class FaultyStore:
    """Pass every call on to `store`, but fail with StoreError at call number `fail_at`. See Store for the methods.

    Calls are counted from 1, over all methods and threads, and only that one call fails. With the mode "before" it
    fails without an effect; with "after" it takes effect and then fails, as when an answer gets lost. `calls` is the
    number of calls so far, so that a test can try each of them. `local_path` touches nothing and is not counted.
    """

    def __init__(self, store: Store, fail_at: int, mode: FailureMode = "before") -> None:
        self.url = store.url
        self.calls = 0
        self._store = store
        self._fail_at = fail_at
        self._mode = mode
        self._lock = threading.Lock()

    def get(self, name: str) -> bytes:
        return self._call(f"get of {name}", lambda: self._store.get(name))

    def get_range(self, name: str, start: int, length: int) -> bytes:
        return self._call(f"get_range of {name}", lambda: self._store.get_range(name, start, length))

    def size(self, name: str) -> int:
        return self._call(f"size of {name}", lambda: self._store.size(name))

    def exists(self, name: str) -> bool:
        return self._call(f"exists of {name}", lambda: self._store.exists(name))

    def put(self, name: str, data: bytes) -> None:
        self._call(f"put of {name}", lambda: self._store.put(name, data))

    def put_if_absent(self, name: str, data: bytes) -> bool:
        return self._call(f"put_if_absent of {name}", lambda: self._store.put_if_absent(name, data))

    def put_file_if_absent(self, name: str, path: Path) -> bool:
        return self._call(f"put_file_if_absent of {name}", lambda: self._store.put_file_if_absent(name, path))

    def fetch(self, name: str, path: Path) -> None:
        self._call(f"fetch of {name}", lambda: self._store.fetch(name, path))

    def local_path(self, name: str) -> Path | None:
        return self._store.local_path(name)

    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        return iter(self._call(f"list of {prefix}*", lambda: tuple(self._store.list(prefix))))

    def delete(self, name: str) -> None:
        self._call(f"delete of {name}", lambda: self._store.delete(name))

    def leftovers(self, before: float, *, delete: bool = False) -> tuple[ObjectInfo, ...]:
        return self._call("leftovers", lambda: self._store.leftovers(before, delete=delete))

    def needless_rights(self) -> tuple[str, ...]:
        return self._call("needless_rights", self._store.needless_rights)

    def _call(self, call: str, operation: Callable[[], T]) -> T:
        with self._lock:
            self.calls += 1
            fails = self.calls == self._fail_at
        error = StoreError(f"store {self.url}: {call} failed on purpose ({self._mode} it took effect)")
        if fails and self._mode == "before":
            raise error
        result = operation()
        if fails:
            raise error
        return result
