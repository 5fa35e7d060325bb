"""Follow a store: answer from its live snapshot, and change to the next one while questions are answered.

A thread looks for a newer number every few seconds. It opens the snapshot beside the one that is in use, checks it, and
exchanges one reference. A question that is under way keeps the snapshot that it began with; the last one closes it.
"""

import logging
import random
import threading
import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from time import monotonic

from dpr.closing import Closing
from dpr.engine.room import Need, check_room, memory_held
from dpr.errors import RoomError, StoreError
from dpr.formats import layout
from dpr.formats.lexical_entry import SearchMode
from dpr.formats.manifest import SnapshotBody
from dpr.formats.objects import bytes_to_fetch
from dpr.formats.segment import HASH
from dpr.formats.snapshots import numbers, read_snapshot
from dpr.formats.stored_vectors import stored_bytes
from dpr.search.filters import Filter
from dpr.search.passage_texts import texts_key
from dpr.search.retrieve import Answer, Retriever
from dpr.stages.gate import LOADED_SHARE
from dpr.store import Store
from dpr.store.cache import local_cache

POLL_SECONDS = 5.0
SPREAD = 0.2
"""By so much, relatively, the time between two looks varies, so that many replicas do not look at once."""

FIRST_PAUSE_SECONDS, MAX_PAUSE_SECONDS = 10.0, 600.0
"""Between two attempts to open a snapshot that the store did not give: each may fetch all of it."""

_log = logging.getLogger(__name__)
_random = random.Random()
"""Not Python's shared generator: a program may have seeded that, and expects its own numbers."""


@dataclass(frozen=True)
class Following:
    """What a follower knows of the store."""

    since: str
    """When it began to answer from its snapshot: UTC, ISO 8601."""
    live: int
    """Number of the newest snapshot that it has seen."""
    loading: int | None = None
    """Number of the snapshot that is being opened."""
    problem: str = ""
    """Why it does not answer from the newest snapshot, or cannot look; empty: it does."""


class _Held:
    """An open snapshot, and how many questions use it."""

    def __init__(self, retriever: Retriever) -> None:
        self.retriever = retriever
        self.users = 0
        self.is_old = False


class Follower(Closing):
    """Answers from the live snapshot of a store; a context manager that closes it."""

    def __init__(self, store: Store, model: str | None = None, poll_seconds: float = POLL_SECONDS) -> None:
        """Open the live snapshot, and begin to follow; `model` as for `Retriever.open`."""
        self.store, self._model, self._poll_seconds = store, model, poll_seconds
        self._lock = threading.Lock()
        self._held = _Held(_opened(Retriever.open(store, model=model)))
        self.state = Following(_now(), self._held.retriever.number)
        self._refused: int | None = None
        self._delayed, self._pause_seconds, self._again = 0, FIRST_PAUSE_SECONDS, 0.0
        self._ended = threading.Event()
        weakref.finalize(self, self._ended.set).atexit = False
        # the thread holds no reference, so that a follower nobody uses is closed
        threading.Thread(target=_follow, args=(weakref.ref(self), self._ended), name="follow", daemon=True).start()

    @property
    def number(self) -> int:
        """Return the number of the snapshot in use."""
        return self._held.retriever.number

    @contextmanager
    def snapshot(self) -> Iterator[Retriever]:
        """Give the snapshot in use; it stays open within the block, whatever is published meanwhile."""
        with self._lock:
            held = self._held
            held.users += 1
        try:
            yield held.retriever
        finally:
            with self._lock:
                held.users -= 1
                is_last = held.is_old and not held.users
            if is_last:
                held.retriever.let_go()  # no question waits for the store

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
        """Change to the newest snapshot, if there is a newer one that can be used; tell whether it changed.

        What cannot be used is kept in `state`. A snapshot that is damaged is not tried again.
        """
        try:
            there = numbers(self.store)
        except (StoreError, OSError) as error:
            return self._stay("the store cannot be looked at", error)
        if not there:
            return self._stay("the store cannot be looked at", "it holds no snapshot any more")
        live = there[-1]
        if live == self._held.retriever.number:
            self.state = replace(self.state, live=live, problem="")
            return False
        if live == self._refused or (live == self._delayed and monotonic() < self._again):
            return False
        self.state = replace(self.state, live=live, loading=live)
        try:
            return self._change(live)
        except RoomError as error:  # found out at once, so the next look tries again
            return self._stay(f"snapshot {live} cannot be opened yet", error)
        except (StoreError, OSError, MemoryError) as error:
            self._pause_seconds = min(2 * self._pause_seconds, MAX_PAUSE_SECONDS)
            if live != self._delayed:
                self._delayed, self._pause_seconds = live, FIRST_PAUSE_SECONDS
            self._again = monotonic() + self._pause_seconds
            return self._stay(f"snapshot {live} cannot be opened yet", error)
        except Exception as error:  # whatever it is: answers go on, and health says why they are not the newest
            self._refused = live
            return self._stay(f"snapshot {live} is refused", error)

    def _change(self, number: int) -> bool:
        """Open a snapshot and use it from now on, unless this follower was closed meanwhile."""
        body = read_snapshot(self.store, number).body
        check_room(
            self.store, "serve", layout.snapshot(number), need_beside(self.store, body, self._held.retriever.body)
        )
        new = _Held(_opened(Retriever.open(self.store, number, self._model, like=self._held.retriever)))
        if self._ended.is_set():
            new.retriever.close()
            return False
        with self._lock:
            old, self._held = self._held, new
            old.is_old, is_unused = True, not old.users
        self.state = Following(_now(), number)
        _log.warning("answers come from snapshot %d now", number)
        if is_unused:
            old.retriever.close()
        return True

    def _stay(self, problem: str, reason: object) -> bool:
        """Note why nothing was changed; the log gets each problem once, as the amounts in its reason may vary."""
        if not self.state.problem.startswith(problem):
            _log.warning("%s: %s; answers still come from snapshot %d", problem, reason, self._held.retriever.number)
        self.state = replace(self.state, loading=None, problem=f"{problem}: {reason}")
        return False

    def close(self) -> None:
        """Stop following, and close the snapshot."""
        self._ended.set()
        self._held.retriever.close()

    @property
    def poll_seconds(self) -> float:
        """Return the time until the next look, in seconds."""
        return self._poll_seconds * _random.uniform(1 - SPREAD, 1 + SPREAD)


def need_beside(store: Store, body: SnapshotBody, held: SnapshotBody) -> Need:
    """Return what a snapshot takes beside one that is open: its new shards, and files and texts that are not here yet.

    The memory is that of this process with the new shards, less than it really takes.
    """
    known = {ref.sha256 for ref in held.objects()}
    shards = [shard.object for shard in body.index.shards if shard.object.sha256 not in known]
    segments = [entry for entry in body.segments if entry.object.sha256 not in known]
    words = [part.object for part in body.lexical.parts] if body.lexical else []
    files = [*shards, *(entry.object for entry in segments), *(ref for ref in words if ref.sha256 not in known)]
    packed = [entry for entry in segments if local_cache().find(texts_key(entry.object)) is None]
    passage = body.encoder.passage
    row_bytes = stored_bytes(passage.dim, passage.store_as) + 2 * HASH.byte_width
    texts_bytes = sum(max(0, entry.object.size_bytes - row_bytes * entry.rows) for entry in packed)
    return Need(
        cache_bytes=sum(bytes_to_fetch(store, ref) for ref in files) + texts_bytes,
        memory_bytes=memory_held() + int(LOADED_SHARE * sum(ref.size_bytes for ref in shards)),
        smaller="set index.memory_gb to half of what there is",
    )


def _follow(follower: "weakref.ref[Follower]", ended: threading.Event) -> None:
    """Look again and again, until the follower is closed or nobody has it any more."""
    while (alive := follower()) is not None:
        seconds = alive.poll_seconds
        del alive
        if ended.wait(seconds):
            return
        if (alive := follower()) is not None:
            alive.look()
            del alive


def _opened(retriever: Retriever) -> Retriever:
    """Return a snapshot that was tried: known passages are found, and nothing is compiled at the first question.

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
