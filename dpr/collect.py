"""Garbage collection: deleting what nothing names any more.

Kept is what the last snapshots and those with a living reader name, what a run that died less than a day ago has made,
and whatever is younger than a day. The caller holds the lease, so no run is under way. Readers and rollbacks may come
at any moment: they write a marker before they read the snapshot's document. So documents are removed first, those whose
reader came meanwhile are put back, and only then is it decided, from the store as it is now, which objects go.
"""

import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

from dpr import layout
from dpr.errors import ConflictError
from dpr.manifest import Snapshot, SnapshotBody
from dpr.readers import Reader, find_readers
from dpr.records import read_record
from dpr.snapshot import numbers, read_snapshot
from dpr.store import ObjectInfo, Store
from dpr.store.lease import Lease, store_time

GRACE_SECONDS = 24 * 3600.0
"""Younger objects are never collected: starting a run again that died may use them."""
_CHECK_SECONDS = 10.0


@dataclass(frozen=True)
class Garbage:
    """What nothing names any more, and what was looked at to know."""

    kept: list[int]
    """Snapshots that stay, with all they name."""
    readers: list[Reader]
    """Those that live."""
    objects: list[ObjectInfo]
    leftovers: tuple[ObjectInfo, ...]
    """What writers that died left unfinished."""

    @property
    def size_bytes(self) -> int:
        return sum(info.size_bytes for info in (*self.objects, *self.leftovers))


def find_garbage(store: Store, keep: int) -> Garbage:
    """What neither the last `keep` snapshots, nor a reader, nor a run that may be started again needs.

    Raises ConflictError if somebody reads a snapshot that has no document: what it names is not known.
    """
    now = store_time(store)
    readers = find_readers(store, now)  # before the snapshots: a rollback removes its marker after it has published
    living = [reader for reader in readers if reader.lives]
    there = numbers(store)
    kept = sorted({*there[-keep:], *(reader.snapshot for reader in living)})
    for reader in living:
        if reader.snapshot not in there:
            raise ConflictError(
                f"snapshot {reader.snapshot} of {store.url} is read ({reader.who}), and its document was collected; "
                "nothing more is deleted until that reader ends"
            )
    snapshots = [read_snapshot(store, number) for number in kept]
    names = {name for snapshot in snapshots for name in _names(snapshot)}
    runs = {layout.run(snapshot.run_id) for snapshot in snapshots}
    unnamed = [i for i in store.list() if i.name.startswith(layout.COLLECTED) and i.name not in names]
    bodies = [snapshot.body for snapshot in snapshots]
    unnamed = [info for info in unnamed if _run_of(info) not in runs and not _is_cached_truth(info, bodies)]
    # these go whatever their age, and no others of their kind: newer ones may have come since
    condemned = {layout.snapshot(number) for number in there if number not in kept}
    condemned |= {reader.marker.name for reader in readers if not reader.lives}
    before = _horizon(store, unnamed, now)
    objects = [
        info
        for info in unnamed
        if info.name in condemned
        or (info.modified < before and not info.name.startswith((layout.SNAPSHOTS, layout.READERS)))
    ]
    return Garbage(kept, living, objects, store.leftovers(now - GRACE_SECONDS))


def collect(store: Store, keep: int, lease: Lease) -> Garbage:
    """Delete garbage and return what was deleted; ConflictError if the lease gets lost meanwhile."""
    documents = {}
    for info in find_garbage(store, keep).objects:
        if info.name.startswith(layout.SNAPSHOTS):
            documents[layout.snapshot_number(info.name)] = info, store.get(info.name)
    _delete(store, [info for info, _ in documents.values()], lease)
    for reader in find_readers(store, store_time(store)):
        if reader.lives and reader.snapshot in documents:
            info, document = documents.pop(reader.snapshot)
            store.put_if_absent(info.name, document)
    garbage = find_garbage(store, sys.maxsize)  # every document that is still there
    # a record goes before its object, or a run would take the unit for done
    _delete(store, sorted(garbage.objects, key=lambda info: not info.name.endswith(".json")), lease)
    store.leftovers(store_time(store) - GRACE_SECONDS, delete=True)
    gone = [info for info, _ in documents.values()]
    return Garbage(garbage.kept, garbage.readers, gone + garbage.objects, garbage.leftovers)


def _delete(store: Store, objects: Sequence[ObjectInfo], lease: Lease) -> None:
    lease.check()
    checked = time.monotonic()
    for info in objects:
        if time.monotonic() - checked > _CHECK_SECONDS:  # also after this process was stopped for a while
            lease.check()
            checked = time.monotonic()
        store.delete(info.name)


def _names(snapshot: Snapshot) -> Iterator[str]:
    """The names of all that a snapshot needs, and of the parts, which make the next run cheap."""
    body = snapshot.body
    yield layout.snapshot(snapshot.number)
    units = [ref.name for ref in body.objects()]
    units += [layout.part(body.codebook.codebook_id, entry.segment_id) for entry in body.segments]
    units += [layout.refused(body.encoder_id, entry.segment_id) for entry in body.segments]
    for name in units:
        yield from (name, layout.record(name))


def _is_cached_truth(info: ObjectInfo, bodies: Sequence[SnapshotBody]) -> bool:
    """Whether an object of the gate's cache is of the questions and segments of these bodies."""
    for body in bodies:
        folder = f"{layout.TRUTH}{body.encoder_id}/{body.gate.get('gate_id', '-')}"
        if info.name.startswith(f"{folder}/"):  # what is known of the questions themselves
            return True
        segments = {entry.segment_id for entry in body.segments}
        if info.name.startswith(f"{folder}-") and PurePosixPath(info.name).stem in segments:
            return True
    return False


def _run_of(info: ObjectInfo) -> str:
    """The run folder an object is in, or an empty string."""
    return "/".join(info.name.split("/")[:2]) + "/" if info.name.startswith(layout.RUNS) else ""


def _horizon(store: Store, unnamed: Sequence[ObjectInfo], now: float) -> float:
    """The time before which unnamed objects are garbage: a day ago, or when the oldest run began that went on since."""
    horizon = now - GRACE_SECONDS
    units: dict[str, float] = {}  # segment id → when its segment, part or truth was made, the latest of them
    whole = [0.0]
    for info in unnamed:
        if info.name.startswith((layout.CODEBOOKS, layout.INDEXES)):  # of one run or another
            whole.append(info.modified)
        elif not _run_of(info):
            stem = PurePosixPath(info.name).stem
            units[stem] = max(units.get(stem, 0.0), info.modified)
    runs: dict[str, list[float]] = {}
    for info in unnamed:
        if run := _run_of(info):
            runs.setdefault(run, []).append(info.modified)
    for run, times in runs.items():
        changes = read_record(store, layout.record(layout.changes(run.split("/")[1])))
        planned = changes.facts["planned"] if changes else []
        made = [units[unit["segment_id"]] for unit in planned if unit["segment_id"] in units]
        if max(times + made + whole) > now - GRACE_SECONDS:
            horizon = min(horizon, *times, *made)  # segments that an earlier run made are used, too
    return horizon
