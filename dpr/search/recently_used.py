"""Values that take memory, kept up to a bound: the least recently used are dropped."""

import threading
from collections import OrderedDict
from collections.abc import Callable
from typing import Generic, TypeVar

K = TypeVar("K")
V = TypeVar("V")


class RecentlyUsed(Generic[K, V]):
    """Values by key, of at most `most_bytes` together, or else a single one; any thread may use it."""

    def __init__(self, most_bytes: int, bytes_of: Callable[[V], int]) -> None:
        self._most_bytes, self._bytes_of = most_bytes, bytes_of
        self._kept: OrderedDict[K, V] = OrderedDict()
        self._lock = threading.Lock()

    def take(self, key: K, read: Callable[[], V]) -> V:
        """Return the value of a key; `read` reads it if it is not here."""
        with self._lock:
            if (found := self._kept.get(key)) is not None:
                self._kept.move_to_end(key)
                return found
        value = read()
        with self._lock:
            self._kept[key] = value
            while sum(map(self._bytes_of, self._kept.values())) > self._most_bytes and len(self._kept) > 1:
                self._kept.popitem(last=False)
        return value

    def drop(self, is_useless: Callable[[K], bool]) -> None:
        """Drop the values of some keys."""
        with self._lock:
            for key in list(filter(is_useless, self._kept)):
                del self._kept[key]
