"""A lease: one run at a time works on a store, and one that lost its lease finds out before it publishes.

Built from put-if-absent and plain reads alone, so it works on every store. Objects, NUMBER being the fencing number:

lease/NUMBER/00000001.json   the claim, which decides who holds the lease: whoever created it under the highest NUMBER
lease/NUMBER/00000002.json   heartbeats, each a new object; older ones are removed, the claim stays
lease/NUMBER/released.json   the holder is done

No clocks of two machines are ever compared: whoever wants a held lease watches whether heartbeats appear, and ages are
differences of two times of the store's own clock.
"""

import json
import os
import re
import threading
import time
import uuid
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from types import TracebackType
from typing import Self

from dpr.errors import ConflictError, MissingObjectError, StoreError
from dpr.store.base import Store
from dpr.store.process import ProcessName

PREFIX = "lease/"
_BEATS_PER_TTL = 3
_LOOKS_PER_TTL = 20
_SECONDS_BETWEEN_LOOKS = 1.0
"""At most."""
_CERTAINLY_DEAD_TTLS = 3
_claims_of_this_process: set[str] = set()
"""Ids of the claims that a `Lease` of this process stands behind; a claim whose acquiring failed half way is not."""
_NAME = re.compile(rf"{PREFIX}(\d+)/(?:(\d+)|released)\.json")


@dataclass(frozen=True)
class Holder(ProcessName):
    """Who claimed a lease; the content of its claim."""

    owner: str
    since: str
    ttl_seconds: float
    claim_id: str

    def __str__(self) -> str:
        return f"{self.owner} (host {self.host}, pid {self.pid}, since {self.since})"


@dataclass(frozen=True)
class _State:
    """What the objects of the highest fencing number say."""

    fencing_number: int
    beat: int
    modified: float
    released: bool


class Lease:
    """The right to work on a store; a context manager that releases it. Made by `Lease.acquire`."""

    def __init__(self, store: Store, fencing_number: int, ttl_seconds: float, claim_id: str) -> None:
        self._claim_id = claim_id
        self.fencing_number = fencing_number
        """Higher than that of every earlier holder."""
        self._store = store
        self._ttl_seconds = ttl_seconds
        self._done = threading.Event()
        self._heart = threading.Thread(target=self._beat_until_done, name="lease", daemon=True)
        self._heart.start()

    @classmethod
    def acquire(cls, store: Store, owner: str, ttl_seconds: float = 60.0) -> Self:
        """Take the lease of `store` for `owner` ("run of STORE"), who is named to whoever comes later.

        A lease whose holder is dead is taken over: at once if it ran on this machine or its last heartbeat is long
        ago, else after watching for the holder's own `ttl_seconds`. Raises ConflictError naming a holder that lives.
        """
        while True:
            state = _look(store)
            if state and not state.released and not _holder_is_dead(store, state):
                raise ConflictError(
                    f"store {store.url} is held by {_current_holder(store)}; wait until it ends or stop it, then "
                    "start again"
                )
            number = state.fencing_number + 1 if state else 1
            lease = cls._claim(store, number, _myself(owner, ttl_seconds))
            if lease:
                return lease

    @classmethod
    def _claim(cls, store: Store, number: int, claim: Holder) -> Self | None:
        _claims_of_this_process.add(claim.claim_id)  # before other threads can see it
        lease: Self | None = None
        try:
            if store.put_if_absent(_name(number, 1), json.dumps(asdict(claim)).encode()):
                state = _look(store)
                # a name freed by a later holder's tidying may be claimed by mistake; the highest number counts
                if state and state.fencing_number == number:
                    _tidy(store, number)
                    lease = cls(store, number, claim.ttl_seconds, claim.claim_id)
        finally:
            if lease is None:
                _claims_of_this_process.discard(claim.claim_id)
        return lease

    def check(self) -> None:
        """Raise ConflictError if the lease was lost; to be called before anything is published.

        What is published must be protected by a put-if-absent of its own all the same: the lease may be lost between
        this answer and the next instruction.
        """
        state = _look(self._store)
        if state is None or state.fencing_number != self.fencing_number:
            raise ConflictError(
                f"the lease of store {self._store.url} was lost (fencing number {self.fencing_number}) to "
                f"{_current_holder(self._store)}, because this run gave no heartbeat for {self._ttl_seconds:g} s; "
                "nothing was published, start the run again"
            )

    def release(self) -> None:
        """Let others have the lease at once."""
        self._done.set()
        self._heart.join()
        _claims_of_this_process.discard(self._claim_id)
        self._store.put_if_absent(f"{PREFIX}{self.fencing_number:08d}/released.json", _now().encode())

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()

    def _beat_until_done(self) -> None:
        beat = 2
        while not self._done.wait(self._ttl_seconds / _BEATS_PER_TTL):
            try:
                # False means that an earlier attempt of this very beat did arrive
                self._store.put_if_absent(_name(self.fencing_number, beat), _now().encode())
                beat += 1
                if beat > 4:
                    self._store.delete(_name(self.fencing_number, beat - 3))
            except StoreError:
                continue  # a missed beat matters only if another takes the lease, and check() sees that


def _look(store: Store) -> _State | None:
    state: _State | None = None
    for info in store.list(PREFIX):  # sorted: numbers ascend, and within one "released" follows the beats
        match = _NAME.fullmatch(info.name)
        if match:
            number, beat = int(match[1]), int(match[2] or 0)
            state = _State(number, beat, info.modified, released=beat == 0)
    return state


def _holder_is_dead(store: Store, state: _State) -> bool:
    try:
        holder = _read_claim(store, state.fencing_number)
    except MissingObjectError:
        return True  # released and tidied away meanwhile; the claim that follows decides
    if holder.has_ended():
        return True
    if holder.is_here() and holder.pid == os.getpid():
        return holder.claim_id not in _claims_of_this_process
    if store_time(store) - state.modified > _CERTAINLY_DEAD_TTLS * holder.ttl_seconds:
        return True
    return not holder.is_here() and _stays_silent(store, state, holder.ttl_seconds)


def _stays_silent(store: Store, state: _State, ttl_seconds: float) -> bool:
    until = time.monotonic() + ttl_seconds
    while time.monotonic() < until:
        time.sleep(min(ttl_seconds / _LOOKS_PER_TTL, _SECONDS_BETWEEN_LOOKS))
        now = _look(store)
        if now != state:
            return now is None or now.released
    return True


def _current_holder(store: Store) -> str:
    state = _look(store)
    try:
        return str(_read_claim(store, state.fencing_number)) if state else "nobody (its objects were removed)"
    except MissingObjectError:
        return "a run that ended this moment"


def _read_claim(store: Store, fencing_number: int) -> Holder:
    name = _name(fencing_number, 1)
    try:
        return Holder(**json.loads(store.get(name)))
    except (ValueError, TypeError) as error:
        raise StoreError(
            f"store {store.url}, object {name} is not a claim of this version; remove it if nothing is running"
        ) from error


def _tidy(store: Store, fencing_number: int) -> None:
    """Remove what earlier holders left; the objects of the highest number stay, or numbers would start anew."""
    for info in list(store.list(PREFIX)):
        match = _NAME.fullmatch(info.name)
        if match and int(match[1]) < fencing_number:
            store.delete(info.name)


def store_time(store: Store) -> float:
    """Now, by the clock that stamps the store's objects."""
    name = f"probes/{uuid.uuid4().hex}"
    store.put(name, b"")
    try:
        return next(store.list(name)).modified
    finally:
        store.delete(name)


def _name(fencing_number: int, beat: int) -> str:
    return f"{PREFIX}{fencing_number:08d}/{beat:08d}.json"


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _myself(owner: str, ttl_seconds: float) -> Holder:
    mine = asdict(ProcessName.mine())
    return Holder(**mine, owner=owner, since=_now(), ttl_seconds=ttl_seconds, claim_id=uuid.uuid4().hex)
