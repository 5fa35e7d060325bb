"""The objects of a lease in a store, NUMBER being the fencing number:

lease/NUMBER/00000001.json   the claim; its writer holds the lease if NUMBER is the highest
lease/NUMBER/00000002.json   heartbeats, each a new object; older ones are removed, the claim stays
lease/NUMBER/released.json   the holder is done

A heartbeat and a release contain the holder's report on its work, in a form of its own, or else the time.
"""

import contextlib
import json
import math
import re
import uuid
from dataclasses import asdict, dataclass
from datetime import UTC, datetime

from dpr.errors import MissingObjectError, StoreError
from dpr.store.base import Store
from dpr.store.process import ProcessName

PREFIX = "lease/"
FIRST_BEAT = 2
"""Number 1 is the claim."""
_KEPT_BEATS = 3
_NAME = re.compile(rf"{PREFIX}(\d+)/(?:(\d+)|released)\.json")


@dataclass(frozen=True)
class Holder(ProcessName):
    """Who claimed a lease; the content of its claim."""

    owner: str
    since: str
    ttl_seconds: float
    claim_id: str
    deletes: bool = False
    """Whether it deletes: a request of it that takes effect late could remove what the next holder relies on."""

    @classmethod
    def of_this_process(cls, owner: str, ttl_seconds: float, *, deletes: bool) -> "Holder":
        """Return a new claim of the calling process."""
        own, claim_id = ProcessName.own(), uuid.uuid4().hex
        return cls(own.host, own.machine, own.pid, own.process_start, owner, _now(), ttl_seconds, claim_id, deletes)

    def __str__(self) -> str:
        return f"{self.owner} (host {self.host}, pid {self.pid}, since {self.since})"


@dataclass(frozen=True)
class LeaseState:
    """The state in the objects of the highest fencing number."""

    fencing_number: int
    beat: int
    modified: float
    released: bool


def read_state(store: Store) -> LeaseState | None:
    """Return the state of the store's lease, or None if nobody ever took it."""
    state: LeaseState | None = None
    for info in store.list(PREFIX):  # sorted: numbers ascend, and within one "released" follows the beats
        match = _NAME.fullmatch(info.name)
        if match:
            number, beat = int(match[1]), int(match[2] or 0)
            state = LeaseState(number, beat, info.modified, released=beat == 0)
    return state


def create_claim(store: Store, fencing_number: int, claim: Holder) -> bool:
    """Claim a fencing number; return whether this process was the first."""
    return store.put_if_absent(_name(fencing_number, 1), json.dumps(asdict(claim)).encode())


def read_claim(store: Store, fencing_number: int) -> Holder:
    """Return who claimed a fencing number. Raises MissingObjectError if there is no claim (any more)."""
    name = _name(fencing_number, 1)
    try:
        holder = Holder(**json.loads(store.get(name)))
        if not isinstance(holder.pid, int) or holder.pid < 1 or not 0.0 < holder.ttl_seconds < math.inf:
            raise ValueError("the process id or the time to live is not a positive number")
    except (ValueError, TypeError) as error:
        raise StoreError(
            f"store {store.url}, object {name} is not a claim of this version; remove it if nothing is running"
        ) from error
    return holder


def describe_holder(store: Store) -> str:
    """Return who holds the lease, in words for a message."""
    state = read_state(store)
    try:
        return str(read_claim(store, state.fencing_number)) if state else "nobody (its objects were removed)"
    except MissingObjectError:
        return "a run that has just ended"


def read_last_words(store: Store, state: LeaseState) -> bytes | None:
    """Return the last report of a holder; None if it gave none, or if it is removed already."""
    if not state.released and state.beat < FIRST_BEAT:
        return None
    name = _released(state.fencing_number) if state.released else _name(state.fencing_number, state.beat)
    with contextlib.suppress(MissingObjectError):
        return store.get(name)
    return None


def create_beat(store: Store, fencing_number: int, beat: int, account: bytes | None = None) -> None:
    """Give a heartbeat."""
    # False means that an earlier attempt of this same beat did arrive
    store.put_if_absent(_name(fencing_number, beat), account or _now().encode())


def remove_old_beat(store: Store, fencing_number: int, beat: int) -> None:
    """Remove the heartbeat that is no longer needed once `beat` was given."""
    if beat - _KEPT_BEATS >= FIRST_BEAT:
        store.delete(_name(fencing_number, beat - _KEPT_BEATS))


def create_release(store: Store, fencing_number: int, account: bytes | None = None) -> None:
    """Mark the lease as released."""
    store.put_if_absent(_released(fencing_number), account or _now().encode())


def remove_earlier(store: Store, fencing_number: int) -> None:
    """Remove the objects of earlier holders; those of the highest number stay, or numbers would start from 1 again."""
    for info in list(store.list(PREFIX)):
        match = _NAME.fullmatch(info.name)
        if match and int(match[1]) < fencing_number:
            store.delete(info.name)


def _name(fencing_number: int, beat: int) -> str:
    return f"{PREFIX}{fencing_number:08d}/{beat:08d}.json"


def _released(fencing_number: int) -> str:
    return f"{PREFIX}{fencing_number:08d}/released.json"


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
