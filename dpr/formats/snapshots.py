"""Snapshots: read and publish. Each is created once, exclusively, under the next number; the highest number is live."""

import datetime
import json
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

from pydantic import ValidationError

from dpr.errors import IntegrityError, MissingObjectError, PublishRaceError, StoreError
from dpr.formats import layout
from dpr.formats.manifest import Snapshot, SnapshotBody
from dpr.formats.markers import Marker
from dpr.store import Store
from dpr.store.reasons import reason_of

T = TypeVar("T")


@dataclass(frozen=True)
class DamagedSnapshot:
    """A snapshot whose document cannot be read."""

    number: int
    problem: str
    """What is wrong with it and what to do, a sentence that names the snapshot and its document."""


@dataclass(frozen=True)
class History:
    """Snapshots of a store, oldest first, and the older ones whose documents are damaged."""

    snapshots: tuple[Snapshot, ...]
    damaged: tuple[DamagedSnapshot, ...]


def numbers(store: Store) -> list[int]:
    """Return the numbers of all snapshots, ascending. Files of other names in their folder are ignored."""
    names = (info.name for info in store.list(layout.SNAPSHOTS))
    return sorted(layout.snapshot_number(name) for name in names if layout.is_snapshot(name))


def foreign_names(store: Store) -> list[str]:
    """Return the names of objects that lie among the snapshots and cannot be one."""
    return [info.name for info in store.list(layout.SNAPSHOTS) if not layout.is_snapshot(info.name)]


def read_snapshot(store: Store, number: int) -> Snapshot:
    """Return snapshot `number`.

    Raises MissingObjectError if there is none, IntegrityError if it is not a snapshot document.
    """
    try:
        content = store.get(layout.snapshot(number))
        snapshot = Snapshot.model_validate_json(content)
    except MissingObjectError as error:
        there = numbers(store)
        known = f"it has {there[0]} to {there[-1]}" if there else "it has none yet; `dpr run RECIPE` makes the first"
        raise MissingObjectError(f"store {store.url} has no snapshot {number}; {known}") from error
    except ValidationError as error:
        raise IntegrityError(f"snapshot {number} of {store.url} {_no_snapshot(store, number, content)}") from error
    if snapshot.number != number:
        raise IntegrityError(
            f"snapshot {number} of {store.url} is damaged: its document {layout.snapshot(number)} is that of snapshot "
            f"{snapshot.number}; restore it from a backup, or remove it"
        )
    return snapshot


def _no_snapshot(store: Store, number: int, content: bytes) -> str:
    """Return what is wrong with a document that cannot be read, and what to do."""
    name, live = layout.snapshot(number), max(numbers(store), default=number)
    try:
        json.loads(content)
    except (ValueError, RecursionError) as error:
        older, newer = ", and the one before it is live again", f": the live snapshot {live} does not need it"
        then = older if live <= number else newer
        return (
            f"is damaged: its document {name} is not JSON ({reason_of(error)}); restore it from a backup, or remove "
            f"it{then}"
        )
    return (
        "is not a snapshot document of this version; if another version of dpr made the store, use that version or a "
        f"new store, else restore {name} from a backup{'' if live <= number else ', or remove it'}"
    )


def latest_snapshot(store: Store) -> Snapshot | None:
    """Return the live snapshot, or None for a store without any."""
    there = numbers(store)
    return read_snapshot(store, there[-1]) if there else None


def live_snapshot(store: Store) -> Snapshot:
    """Return the live snapshot. Raises StoreError if the store has none."""
    found = latest_snapshot(store)
    if found is None:
        raise StoreError(f"store {store.url} has no snapshot; `dpr run RECIPE` makes the first")
    return found


def open_snapshot(store: Store, number: int | None = None) -> tuple[Snapshot, Marker]:
    """Return snapshot `number` (default: the live one), and the marker that keeps what it names until it is closed."""
    snapshot = live_snapshot(store) if number is None else read_snapshot(store, number)
    marker = Marker(store, snapshot.number)
    try:
        # garbage collection removes the document before it looks for markers: it finds this one, or this read fails
        return read_snapshot(store, snapshot.number), marker
    except BaseException:
        marker.close()
        raise


def read_history(store: Store, newest: int | None = None) -> History:
    """Return all snapshots up to `newest` (default: the live one).

    Raises IntegrityError if the newest of them is damaged: none may take its place unseen.
    """
    there = [number for number in numbers(store) if newest is None or number <= newest]
    found, damaged = read_each(there, partial(read_snapshot, store))
    return History(tuple(found), tuple(damaged))


def read_each(there: Sequence[int], read: Callable[[int], T]) -> tuple[list[T], list[DamagedSnapshot]]:
    """Return what `read` gives for each of some ascending numbers of snapshots, and those that are damaged.

    Raises IntegrityError if the last one is damaged.
    """
    found: list[T] = []
    damaged: list[DamagedSnapshot] = []
    for number in there:
        try:
            found.append(read(number))
        except IntegrityError as error:
            if number == there[-1]:
                raise
            damaged.append(DamagedSnapshot(number, str(error)))
    return found, damaged


def lineage(store: Store, encoder_id: str) -> History:
    """Return all snapshots made with this encoder; the next run of it builds upon the last.

    Raises IntegrityError if a damaged one may be the last: the run would embed again what that one holds.
    """
    history = read_history(store)
    own = tuple(snapshot for snapshot in history.snapshots if snapshot.body.encoder_id == encoder_id)
    for each in history.damaged:
        if not own or each.number > own[-1].number:
            raise IntegrityError(
                f"{each.problem}; nothing is run before that, since it may be the newest snapshot of this encoder, and "
                "what only that one holds would be embedded again"
            )
    return History(own, history.damaged)


def publish_body(
    store: Store, body: SnapshotBody, parent: int | None, *, run_id: str, inputs: str | None, note: str = ""
) -> Snapshot:
    """Make `body` the live snapshot if `parent` still is.

    Raises PublishRaceError if another publisher was first.
    """
    body.check()
    snapshot = Snapshot(
        number=(parent or 0) + 1,
        parent=parent,
        publish_id=uuid.uuid4().hex,
        run_id=run_id,
        inputs=inputs,
        published_at=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        note=note,
        body=body,
    )
    check_live(store, parent)
    created = store.put_if_absent(layout.snapshot(snapshot.number), snapshot.to_bytes())
    if not created and read_snapshot(store, snapshot.number).publish_id != snapshot.publish_id:
        raise PublishRaceError(_lost(store, snapshot.number, numbers(store)[-1]))
    return snapshot


def check_live(store: Store, number: int | None) -> None:
    """Raise PublishRaceError unless snapshot `number` (None: no snapshot at all) is the live one still."""
    there = numbers(store)
    live = there[-1] if there else None
    if live != number:
        raise PublishRaceError(_lost(store, (number or 0) + 1, live))


def _lost(store: Store, number: int, live: int | None) -> str:
    return (
        f"snapshot {number} of {store.url} was not published: another publisher was first (live is {live}); "
        "start the run again to build on it"
    )
