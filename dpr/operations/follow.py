"""Follow a store: answer from its live snapshot, and switch to the next one while questions are answered.

A thread looks for a newer number every few seconds. It opens the snapshot beside the one that is in use, checks it, and
exchanges one reference. A question that is under way keeps the snapshot that it began with; the last one closes it.
"""

import logging
import random
import threading
import weakref
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from time import monotonic

from dpr.closing import Closing
from dpr.engine.room import Need, check_room
from dpr.errors import RoomError, StoreError
from dpr.formats import layout
from dpr.formats.lexical_entry import SearchMode
from dpr.formats.snapshots import live_snapshot, numbers, read_snapshot
from dpr.operations.snapshot_in_use import SnapshotInUse
from dpr.operations.snapshot_room import fits_the_cache, need_beside, segments_to_fetch
from dpr.search.filters import Filter
from dpr.search.retrieve import Answer, Retriever
from dpr.search.sharded_vectors import Shards
from dpr.store import Store

POLL_SECONDS = 5.0
SPREAD = 0.2
"""The time between two looks varies by this share, so that many replicas do not look at once."""

FIRST_PAUSE_SECONDS, MAX_PAUSE_SECONDS = 10.0, 600.0
"""Pauses between attempts to open a snapshot that could not be read: each may fetch all of it."""

_log = logging.getLogger(__name__)
_random = random.Random()
"""Not Python's shared generator, which a program may have seeded to get the same numbers each time."""


@dataclass(frozen=True)
class Following:
    """The state of a follower."""

    since: str
    """When it began to answer from its snapshot: UTC, ISO 8601."""
    live: int
    """Number of the newest snapshot that it has seen."""
    loading: int | None = None
    """Number of the snapshot that is being opened."""
    problem: str = ""
    """Why it does not answer from the newest snapshot, or cannot look; empty: it does."""
    is_fetched: bool = True
    """Whether everything that it answers from is on this machine; otherwise segments are read by range as needed."""


class Follower(Closing):
    """Answers from the live snapshot of a store; a context manager that closes it."""

    def __init__(
        self,
        store: Store,
        model: str | None = None,
        poll_seconds: float = POLL_SECONDS,
        shards: Shards | None = None,
    ) -> None:
        """Open the live snapshot, and begin to follow; `model` and `shards` as for `Retriever.open`.

        Segments of a remote store that are not on this machine are fetched afterwards, while questions are answered.
        """
        self.store, self._model, self._poll_seconds, self._shards = store, model, poll_seconds, shards
        self._turn = threading.Lock()
        is_here = not segments_to_fetch(store, live_snapshot(store).body)
        self._in_use = SnapshotInUse(self._opened(by_range=not is_here))
        self._fetch_again = 0.0
        self.state = Following(_now(), self._in_use.retriever.number, is_fetched=not self._in_use.retriever.is_remote)
        self._refused: int | None = None
        self._delayed, self._pause_seconds, self._again = 0, FIRST_PAUSE_SECONDS, 0.0
        self._ended = threading.Event()
        weakref.finalize(self, self._ended.set).atexit = False
        # the thread holds no reference, so that a follower nobody uses is closed
        threading.Thread(target=_follow, args=(weakref.ref(self), self._ended), name="follow", daemon=True).start()

    @property
    def number(self) -> int:
        """Return the number of the snapshot in use."""
        return self._in_use.retriever.number

    @property
    def is_here(self) -> bool:
        """Return whether answers come from this process and machine alone, without shards and remote segments."""
        return self._shards is None and not self._in_use.retriever.is_remote

    def snapshot(self) -> AbstractContextManager[Retriever]:
        """Give the snapshot in use; it stays open within the block, whatever is published meanwhile."""
        return self._in_use.held()

    def search(
        self,
        questions: Sequence[str],
        k: int = 10,
        *,
        mode: SearchMode | None = None,
        exact: bool = False,
        where: Filter | None = None,
    ) -> Answer:
        """Return the best k passages for each question, all from one snapshot, as `Retriever.search` does."""
        with self.snapshot() as retriever:
            return retriever.search(questions, k, mode=mode, exact=exact, where=where)

    def look(self) -> bool:
        """Switch to the newest snapshot, if there is a newer one that can be used; return whether it switched.

        `state` holds the reason why one cannot be used. A snapshot that is damaged is not tried again.
        """
        try:
            there = numbers(self.store)
        except (StoreError, OSError) as error:
            return self._stay("the store cannot be read", error)
        if not there:
            return self._stay("the store cannot be read", "it holds no snapshot any more")
        live = there[-1]
        if live != self.state.live:  # the number may come again with another snapshot: what was wrong before is over
            self._refused, self._delayed = None, 0
        if live == self._in_use.retriever.number:
            self.state = replace(self.state, live=live, problem="")
            return False
        if live == self._refused or (live == self._delayed and monotonic() < self._again):
            return False
        self.state = replace(self.state, live=live, loading=live)
        try:
            with self._turn:
                return self._change(live)
        except RoomError as error:  # checking takes no time, so the next look tries again
            return self._stay(f"snapshot {live} cannot be opened yet", error)
        except (StoreError, OSError, MemoryError) as error:
            self._pause_seconds = min(2 * self._pause_seconds, MAX_PAUSE_SECONDS)
            if live != self._delayed:
                self._delayed, self._pause_seconds = live, FIRST_PAUSE_SECONDS
            self._again = monotonic() + self._pause_seconds
            return self._stay(f"snapshot {live} cannot be opened yet", error)
        except Exception as error:  # any error: answers continue, and health says why they are not the newest
            self._refused = live
            return self._stay(f"snapshot {live} is refused", error)

    def _change(self, number: int) -> bool:
        """Open a snapshot and use it from now on, unless this follower was closed meanwhile."""
        body, held = read_snapshot(self.store, number).body, self._in_use.retriever
        need, by_range = need_beside(self.store, body, held.body), not fits_the_cache(body)
        check_room(self.store, "serve", layout.snapshot(number), replace(need, cache_bytes=0) if by_range else need)
        if not self._use(new := self._opened(number, held, by_range=by_range)):
            return False
        self.state = Following(_now(), number, is_fetched=not new.is_remote)
        _log.warning("answers come from snapshot %d now", number)
        return True

    def fetch(self) -> bool:
        """Fetch the segments that have been read by range so far, and use them; return whether that was done.

        A snapshot that is too large for the cache is read by range as long as it is used. After a failure, a later call
        tries again.
        """
        with self._turn:
            held = self._in_use.retriever
            if self.state.is_fetched or monotonic() < self._fetch_again or not fits_the_cache(held.body):
                return False
            try:
                need = Need(cache_bytes=segments_to_fetch(self.store, held.body))
                check_room(self.store, "serve", layout.snapshot(held.number), need)
                is_done = self._use(self._opened(held.number, held))
            except Exception as error:  # any error: answers continue as before
                self._fetch_again = monotonic() + MAX_PAUSE_SECONDS / 10
                _log.warning("snapshot %d is still read by range: %s", held.number, error)
                return False
            if is_done:
                self.state = replace(self.state, is_fetched=True)
            return is_done

    def _opened(self, number: int | None = None, like: Retriever | None = None, *, by_range: bool = False) -> Retriever:
        """Open a snapshot beside `like`, and try it; its texts are unpacked in a separate thread."""
        opened = _tried(Retriever.open(self.store, number, self._model, like, self._shards, by_range=by_range))
        opened.unpack_beside()
        return opened

    def _use(self, retriever: Retriever) -> bool:
        """Use another open snapshot from now on, unless this follower was closed meanwhile."""
        if self._ended.is_set():
            retriever.close()
            return False
        self._in_use.replace(retriever)
        return True

    def _stay(self, problem: str, reason: object) -> bool:
        """Note why it did not switch; the log gets each problem once, although the amounts in its reason may vary."""
        if not self.state.problem.startswith(problem):
            _log.warning("%s: %s; answers still come from snapshot %d", problem, reason, self._in_use.retriever.number)
        self.state = replace(self.state, loading=None, problem=f"{problem}: {reason}")
        return False

    def close(self) -> None:
        """Stop following, and close the snapshot."""
        self._ended.set()
        self._in_use.retriever.close()

    @property
    def poll_seconds(self) -> float:
        """Return the time until the next look, in seconds."""
        return self._poll_seconds * _random.uniform(1 - SPREAD, 1 + SPREAD)


def _follow(follower: "weakref.ref[Follower]", ended: threading.Event) -> None:
    """Look repeatedly, until the follower is closed or nobody refers to it."""
    if (alive := follower()) is not None:
        alive.fetch()
        del alive  # otherwise it would never be dropped
    while (alive := follower()) is not None:
        seconds = alive.poll_seconds
        del alive
        if ended.wait(seconds):
            return
        if (alive := follower()) is not None:
            alive.look()
            alive.fetch()
            del alive


def _tried(retriever: Retriever) -> Retriever:
    """Try a snapshot and return it: known passages are found, and nothing is compiled at the first question.

    Raises IntegrityError if they are not found.
    """
    try:
        retriever.check_known()
        retriever.warm_up()
    except BaseException:
        retriever.close()
        raise
    return retriever


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
