"""A process that holds one part of the index, of all snapshots that fronts name.

A front is a process that encodes questions and merges the answers of all parts. It repeatedly sends the numbers of the
snapshots that it uses. So a part that was restarted learns what to open, and a front that has ended is forgotten.
"""

import logging
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from time import monotonic

from dpr.engine.room import check_room
from dpr.errors import RoomError, StoreError
from dpr.formats import layout
from dpr.formats.snapshots import read_snapshot
from dpr.operations.snapshot_room import need_beside
from dpr.search.shard_groups import GroupPlace
from dpr.search.shard_search import ShardAnswer, ShardQuestion, ShardSearch
from dpr.store import Store

FORGET_SECONDS = 60.0
"""After this time without a message, a front counts as ended."""
AGAIN_SECONDS = 5.0
"""Pause between two attempts to open a snapshot."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Kept:
    """Which of the snapshots that a front named are open in a part."""

    open: tuple[int, ...]
    problem: str = ""
    """Why one of them is not open; empty: it is being opened, or all are."""
    is_final: bool = False
    """Whether the problem lies in the snapshot itself, so that another attempt would not help."""


@dataclass(frozen=True)
class _Problem:
    text: str
    is_final: bool
    again: float


class ShardHost:
    """Holds one part of the index of one snapshot, and of the next one while fronts switch to it."""

    def __init__(self, store: Store, place: GroupPlace) -> None:
        """Open the live snapshot. Raises StoreError if there is none."""
        self._store, self._place = store, place
        first = ShardSearch.open(store, place)
        self._open = {first.number: first}
        self._wanted: dict[str, tuple[frozenset[int], float]] = {}
        self._problems: dict[int, _Problem] = {}
        self._opening: set[int] = set()
        self._lock = threading.Lock()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="open")

    def keep(self, front: str, snapshots: Sequence[int]) -> Kept:
        """Have these snapshots open for a front, and no more than all fronts want; returns at once."""
        now, named = monotonic(), frozenset(snapshots)
        with self._lock:
            self._wanted = {name: each for name, each in self._wanted.items() if now - each[1] < FORGET_SECONDS}
            self._wanted[front] = named, now
            wanted = frozenset().union(*(numbers for numbers, _ in self._wanted.values()))
            for number in sorted(wanted - self._open.keys() - self._opening):
                if number not in self._problems or now >= self._problems[number].again:
                    self._opening.add(number)
                    self._thread.submit(self._open_one, number)
            if wanted:  # a question in progress keeps its snapshot open; the end of its answer closes it
                self._open = {number: part for number, part in self._open.items() if number in wanted}
                self._problems = {number: why for number, why in self._problems.items() if number in wanted}
            problems = [self._problems[number] for number in sorted(named) if number in self._problems]
            is_open = tuple(sorted(named & self._open.keys()))
        return Kept(is_open, problems[0].text, problems[0].is_final) if problems else Kept(is_open)

    def answer(self, question: ShardQuestion) -> ShardAnswer | None:
        """Return the best of this part; None if the snapshot of the question is not open here."""
        with self._lock:
            part = self._open.get(question.snapshot)
        return None if part is None else part.answer(question)

    def _open_one(self, number: int) -> None:
        problem: _Problem | None = None
        try:
            self._add(number)
        except (StoreError, RoomError, OSError, MemoryError) as error:
            problem = _Problem(str(error), is_final=False, again=monotonic() + AGAIN_SECONDS)
        except Exception as error:  # any error: the fronts continue with the previous snapshot, and say why
            problem = _Problem(str(error), is_final=True, again=monotonic() + FORGET_SECONDS)
        with self._lock:
            self._opening.discard(number)
            self._problems.pop(number, None)
            if problem is not None:
                self._problems[number] = problem
                _log.warning("shard %d cannot open snapshot %d: %s", self._place.number, number, problem.text)

    def _add(self, number: int) -> None:
        with self._lock:
            like = self._open[max(self._open)] if self._open else None
        if like is not None:
            body = read_snapshot(self._store, number).body
            part = body.model_copy(update={"index": self._place.of(body.index)})
            check_room(self._store, "serve", layout.snapshot(number), need_beside(self._store, part, like.body))
        opened = ShardSearch.open(self._store, self._place, number, like)
        with self._lock:
            self._open[number] = opened
