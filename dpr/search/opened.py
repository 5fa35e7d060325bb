"""Stored objects that are open in this process: each once, however many snapshots name it.

A night leaves most segments, shards and words as they are. So the next snapshot, opened beside the one in use, shares
the objects of both: they are neither fetched nor verified nor held in memory again.
"""

from collections.abc import Callable
from typing import TypeVar, cast
from weakref import WeakValueDictionary

T = TypeVar("T")


class OpenObjects:
    """Open objects, as long as somebody holds them: this class keeps nothing open by itself."""

    def __init__(self) -> None:
        self._open: WeakValueDictionary[tuple[str, str], object] = WeakValueDictionary()

    def has(self, form: str, sha256: str) -> bool:
        """Return whether an object is open in some form now."""
        return (form, sha256) in self._open

    def take(self, form: str, sha256: str, open_it: Callable[[], T]) -> T:
        """Return an object in some form, such as the vectors of a segment; if it is not open, `open_it` opens it."""
        found = self._open.get((form, sha256))
        if found is None:
            found = self._open[form, sha256] = open_it()
        return cast(T, found)
