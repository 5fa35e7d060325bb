"""Garbage collection: deleting objects that nothing names any more.

Three kinds of objects are kept: those that the last snapshots, or snapshots with a living reader, name; those of a run
that died less than a day ago; and those younger than a day. The caller holds the lease, so no run is under way. Readers
and rollbacks may start at any moment: they write a marker before they read the snapshot's document. So collection first
removes documents, then restores those that got a reader in the meantime, and then decides from the present state of the
store which objects to delete.
"""

import sys
import time
from collections.abc import Iterator, Sequence, Set
from dataclasses import dataclass

from dpr.errors import ConflictError
from dpr.formats import layout
from dpr.formats.manifest import Snapshot
from dpr.formats.markers import Reader, find_readers
from dpr.formats.records import read_record
from dpr.formats.snapshots import numbers, read_snapshot
from dpr.run import RunPlan, read_run_plan
from dpr.stages.diff import Changes
from dpr.stages.write_segment import SegmentResult
from dpr.store import ObjectInfo, Store
from dpr.store.lease import Lease, store_time

GRACE_SECONDS = 24 * 3600.0
"""Younger objects are never collected: a run that died may use them when it is started again."""
_CHECK_SECONDS = 10.0


@dataclass(frozen=True)
class Garbage:
    """Objects that nothing names any more, and the facts from which this was decided."""

    kept: list[int]
    """Snapshots that stay, with all they name."""
    readers: list[Reader]
    """Readers that are alive."""
    objects: list[ObjectInfo]
    leftovers: tuple[ObjectInfo, ...]
    """Unfinished files of writers that died."""

    @property
    def size_bytes(self) -> int:
        return sum(info.size_bytes for info in (*self.objects, *self.leftovers))


def find_garbage(store: Store, keep: int) -> Garbage:
    """Find the objects that neither the last `keep` snapshots, nor a reader, nor a run that may be started again needs.

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
    stems = {stem for number in kept for stem in _snapshot_stems(store, read_snapshot(store, number))}
    objects = [info for info in store.list() if info.name.startswith(layout.COLLECTED)]
    old = now - GRACE_SECONDS
    stems |= _unfinished_stems(store, objects, stems, old)
    # snapshots and markers are deleted by name, at any age: newer ones may have been written since
    condemned = {layout.snapshot(number) for number in there if number not in kept}
    condemned |= {reader.marker.name for reader in readers if not reader.lives}
    garbage = [info for info in objects if info.name in condemned or _is_garbage(info, stems, old)]
    return Garbage(kept, living, garbage, store.leftovers(old))


def _is_garbage(info: ObjectInfo, stems: Set[str], old: float) -> bool:
    if info.name.startswith((layout.SNAPSHOTS, layout.READERS)):
        return False
    return info.modified < old and not any(stem in stems for stem in _stems_of(info.name))


def _stems_of(name: str) -> Iterator[str]:
    """Yield the stems that keep an object: its folders, its name, and the unit that made it.

    `segments/E/S.refused-DIGEST.parquet` is of the unit `segments/E/S`, or `S` for short, as is its record.
    """
    folder, _, file = name.rpartition("/")
    parts = folder.split("/")
    yield from ("/".join(parts[: depth + 1]) + "/" for depth in range(len(parts)))
    yield name
    unit = file.partition(".")[0].partition("-")[0]
    yield f"{folder}/{unit}"
    yield unit


def _snapshot_stems(store: Store, snapshot: Snapshot) -> Iterator[str]:
    """Yield the stems that a snapshot needs, or that make the next run cheap: scans, parts, gate results."""
    body = snapshot.body
    yield layout.snapshot(snapshot.number)
    yield layout.run(snapshot.run_id)
    yield from (ref.name for ref in body.objects())
    yield layout.codebook(body.encoder_id, body.codebook.codebook_id)
    yield from (layout.stem_of(shard.object.name) for shard in body.index.shards)
    questions = layout.questions(body.encoder_id, body.gate.questions_id)
    yield questions
    folder = questions.rpartition("/")[0]
    yield f"{folder}/measured"
    yield f"{folder}/modes"
    yield f"{folder}/fp8"
    for part in body.lexical.parts if body.lexical else ():
        yield layout.stem_of(part.object.name)
    for entry in body.segments:
        yield layout.segment(body.encoder_id, entry.segment_id)
        yield layout.part(body.codebook.object.sha256, entry.object.sha256)
        yield f"{folder}/{entry.object.sha256[: layout.SHORT_DIGEST]}"
    yield from _scan_stems(read_run_plan(store, snapshot.run_id))


def _scan_stems(plan: RunPlan | None) -> Iterator[str]:
    """Yield the stems of the scans that a run used."""
    yield from (record.removesuffix(".json") for record in (plan.scans if plan else ()))


def _unfinished_stems(store: Store, objects: Sequence[ObjectInfo], kept: Set[str], old: float) -> Set[str]:
    """Return the stems of runs without a kept snapshot that died recently, so that they may be continued."""
    runs: dict[str, float] = {}
    newest: dict[str, float] = {}
    for info in objects:
        if info.name.startswith(layout.RUNS):
            run_id = info.name.split("/")[1]
            runs[run_id] = max(runs.get(run_id, 0.0), info.modified)
        else:
            for stem in _stems_of(info.name):
                newest[stem] = max(newest.get(stem, 0.0), info.modified)
    stems: set[str] = set()
    for run_id, modified in runs.items():
        if layout.run(run_id) not in kept:
            made = _run_stems(store, run_id)
            latest = max([modified, *(newest.get(stem, 0.0) for stem in made)])
            stems |= made if latest > old else set()
    return stems


def _run_stems(store: Store, run_id: str) -> set[str]:
    """Return the stems of a run's folder, its scans, and the segments it planned with their parts and their truth."""
    plan = read_run_plan(store, run_id)
    changes = read_record(store, layout.record(layout.changes(run_id)), Changes)
    stems = {layout.run(run_id), *_scan_stems(plan)}
    if plan is None or changes is None:
        return stems
    if changes.deletions is not None:
        stems.add(changes.deletions.name)
    for planned in changes.planned:
        stem = layout.segment(plan.encoder_id, planned.segment_id)
        stems.add(stem)
        made = read_record(store, layout.record(stem), SegmentResult)
        if made is not None and made.segment is not None:
            stems.add(made.segment.sha256[: layout.SHORT_DIGEST])
    return stems


def collect(store: Store, keep: int, lease: Lease) -> Garbage:
    """Delete garbage and return the deleted objects. Raises ConflictError if the lease is lost meanwhile."""
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
    # records are deleted before their objects, or a run would take the unit for done
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
        with lease.deletion():
            store.delete(info.name)
