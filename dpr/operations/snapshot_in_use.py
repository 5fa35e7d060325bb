"""The snapshot that questions are answered from, until another one replaces it."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from dpr.search.retrieve import Retriever


@dataclass
class _OpenSnapshot:
    """An open snapshot, and how many questions use it."""

    retriever: Retriever
    users: int = 0
    is_old: bool = False


class SnapshotInUse:
    """An open snapshot that can be replaced at any time; the old one is closed when its last question is answered."""

    def __init__(self, retriever: Retriever) -> None:
        self._lock = threading.Lock()
        self._current = _OpenSnapshot(retriever)

    @property
    def retriever(self) -> Retriever:
        """Return the snapshot in use. It may be closed at any time: `held` keeps it open."""
        return self._current.retriever

    @contextmanager
    def held(self) -> Iterator[Retriever]:
        """Give the snapshot in use; it stays open within the block."""
        with self._lock:
            snapshot = self._current
            snapshot.users += 1
        try:
            yield snapshot.retriever
        finally:
            with self._lock:
                snapshot.users -= 1
                is_last = snapshot.is_old and not snapshot.users
            if is_last:
                snapshot.retriever.let_go()  # no question waits for the store

    def replace(self, retriever: Retriever) -> None:
        """Use another open snapshot from now on."""
        with self._lock:
            old, self._current = self._current, _OpenSnapshot(retriever)
            old.is_old, is_unused = True, not old.users
        if is_unused:
            old.retriever.close()
