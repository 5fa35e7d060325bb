"""A lease: one run at a time works on a store, and one that lost its lease finds out before it publishes.

It is built from put-if-absent and plain reads alone, so it works on every store. The clocks of two machines are never
compared: a process that wants a held lease watches for heartbeats, and ages are differences of two times of the store's
own clock.
"""

import contextlib
import os
import threading
import time
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import Self

from dpr.errors import ConflictError, MissingObjectError, StoreError
from dpr.store.base import Store, probe_name
from dpr.store.lease_objects import (
    FIRST_BEAT,
    Holder,
    LeaseState,
    create_beat,
    create_claim,
    create_release,
    describe_holder,
    read_claim,
    read_last_words,
    read_state,
    remove_earlier,
    remove_old_beat,
)
from dpr.store.requests import outside_of_stages

LEASE_SECONDS = 360.0
"""After this time without a heartbeat a holder is taken for dead: longer than one request to a store may take."""
RELEASE_SECONDS = 10.0
"""How long a release waits for a heartbeat in progress."""
_MAX_BEAT_SECONDS = 20.0
_SOON_SECONDS = 5.0
"""How long a heartbeat that is due soon waits at most, so that more frequent changes do not cost more requests."""
_BEATS_PER_TTL = 3
_LOOKS_PER_TTL = 20
_MAX_LOOK_SECONDS = 1.0
_CERTAINLY_DEAD_TTLS = 3
_claims_of_this_process: set[str] = set()
"""Ids of the claims that a `Lease` of this process holds; a claim whose acquiring failed half way is not among them."""


class Lease:
    """The right to work on a store; a context manager that releases it. `Lease.acquire` makes it."""

    def __init__(
        self, store: Store, fencing_number: int, ttl_seconds: float, claim_id: str, predecessor: bytes | None = None
    ) -> None:
        self._claim_id = claim_id
        self.predecessor = predecessor
        """The last report of the previous holder; None: there is none."""
        self.account: Callable[[], bytes] | None = None
        """Returns this holder's report on its work, which its heartbeats and its release contain. Any thread may call
        it. None: they contain the time."""
        self.fencing_number = fencing_number
        """Higher than that of every earlier holder."""
        self._store = store
        self._ttl_seconds = ttl_seconds
        self._done, self._beats_soon = threading.Event(), threading.Event()
        self._is_unsettled = False
        """Whether a deletion may still take effect."""
        self._heart_error: BaseException | None = None
        self._heart = threading.Thread(target=self._beat_until_done, name="lease", daemon=True)
        self._heart.start()

    @classmethod
    def acquire(cls, store: Store, owner: str, ttl_seconds: float = LEASE_SECONDS, *, deletes: bool = False) -> Self:
        """Take the lease of `store` for `owner`, a name such as "run of STORE", which others see.

        A lease whose holder is dead is taken over: at once if it ran on this machine or its last heartbeat is long
        ago, else after watching for the holder's own `ttl_seconds`. One that `deletes` is always watched for that long,
        so that no request of it is still on its way. Raises ConflictError that names a living holder.
        """
        while True:
            state = read_state(store)
            if state and not state.released and not _holder_is_dead(store, state):
                raise ConflictError(
                    f"store {store.url} is held by {describe_holder(store)}; wait until it ends or stop it, then "
                    "start again"
                )
            number = state.fencing_number + 1 if state else 1
            lease = cls._claim(store, number, Holder.of_this_process(owner, ttl_seconds, deletes=deletes), state)
            if lease:
                return lease

    @classmethod
    def _claim(cls, store: Store, number: int, claim: Holder, before: LeaseState | None) -> Self | None:
        _claims_of_this_process.add(claim.claim_id)  # before other threads can see it
        lease: Self | None = None
        try:
            if create_claim(store, number, claim):
                state = read_state(store)
                # a name freed by a later holder's tidying may be claimed by mistake; the highest number counts
                if state and state.fencing_number == number:
                    words = read_last_words(store, before) if before else None
                    remove_earlier(store, number)
                    lease = cls(store, number, claim.ttl_seconds, claim.claim_id, words)
        finally:
            if lease is None:
                _claims_of_this_process.discard(claim.claim_id)
        return lease

    def check(self) -> None:
        """Raise ConflictError if the lease was lost, StoreError if its heartbeats have stopped.

        Call it between stages and before anything is published: it lists a few objects and reads none. Publishing still
        needs a put-if-absent of its own, since the lease may be lost right after this check.
        """
        state = read_state(self._store)
        if state is None or state.fencing_number != self.fencing_number:
            raise ConflictError(
                f"the lease of store {self._store.url} was lost (fencing number {self.fencing_number}) to "
                f"{describe_holder(self._store)}, because this run gave no heartbeat for {self._ttl_seconds:g} s; "
                "nothing was published, start the run again"
            ) from self._heart_error
        if self._heart_error is not None:
            raise StoreError(
                f"the lease of store {self._store.url} has no heartbeats any more, because of an unexpected error "
                f"({type(self._heart_error).__name__}: {self._heart_error}); please report it, "
                "and start the run again"
            ) from self._heart_error

    def release(self) -> None:
        """Let others have the lease at once.

        If a heartbeat is stuck in the store, or the outcome of a deletion is not known, the lease ends by itself a
        while later, as after a crash.
        """
        self._done.set()
        self._heart.join(RELEASE_SECONDS)
        _claims_of_this_process.discard(self._claim_id)
        if not self._heart.is_alive() and not self._is_unsettled:
            create_release(self._store, self.fencing_number, self._account())

    @contextlib.contextmanager
    def deletion(self) -> Iterator[None]:
        """Delete something within the block. If that fails, it may still take effect later, so nothing is released."""
        try:
            yield
        except BaseException:
            self._is_unsettled = True
            raise

    def beat_soon(self) -> None:
        """Give the next heartbeat within a few seconds, since the report has changed."""
        self._beats_soon.set()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            self.release()
            return
        with contextlib.suppress(StoreError):  # the first error says more, and a lease without heartbeats ends too
            self.release()

    def _beat_until_done(self) -> None:
        try:
            with outside_of_stages():
                self._beat()
        except BaseException as error:
            self._heart_error = error  # check() raises it

    def _beat(self) -> None:
        beat, beat_seconds = FIRST_BEAT, min(_MAX_BEAT_SECONDS, self._ttl_seconds / _BEATS_PER_TTL)
        last = time.monotonic()
        while not self._done.wait(min(_SOON_SECONDS, beat_seconds)):
            if not self._beats_soon.is_set() and time.monotonic() - last < beat_seconds:
                continue
            self._beats_soon.clear()
            last = time.monotonic()
            # a missed beat matters only if another takes the lease, and check() sees that
            with contextlib.suppress(StoreError):
                create_beat(self._store, self.fencing_number, beat, self._account())
                beat += 1
                remove_old_beat(self._store, self.fencing_number, beat - 1)

    def _account(self) -> bytes | None:
        return self.account() if self.account is not None else None


def _holder_is_dead(store: Store, state: LeaseState) -> bool:
    try:
        holder = read_claim(store, state.fencing_number)
    except MissingObjectError:
        return True  # released and tidied away meanwhile; the claim that follows decides
    ended = holder.has_ended()
    if holder.is_here() and holder.pid == os.getpid():
        ended = holder.claim_id not in _claims_of_this_process
        if not ended:
            return False
    if ended and not holder.deletes:
        return True
    if store_time(store) - state.modified > _CERTAINLY_DEAD_TTLS * holder.ttl_seconds:
        return True
    return (ended or not holder.is_here()) and _stays_silent(store, state, holder.ttl_seconds)


def _stays_silent(store: Store, state: LeaseState, ttl_seconds: float) -> bool:
    until = time.monotonic() + ttl_seconds
    while True:
        # only a look that begins after that time decides: this process may have been stopped since the last one
        is_last = time.monotonic() >= until
        now = read_state(store)
        if now != state:
            return now is None or now.released
        if is_last:
            return True
        time.sleep(min(ttl_seconds / _LOOKS_PER_TTL, _MAX_LOOK_SECONDS))


def store_time(store: Store) -> float:
    """Return the present time by the clock that stamps the store's objects."""
    name = probe_name()
    store.put(name, b"")
    try:
        for info in store.list(name):
            return info.modified
    finally:
        store.delete(name)
    raise StoreError(f"store {store.url} does not list the object {name} that was just put; start again")
