"""Looking after a store: verifying it, collecting garbage, comparing snapshots."""

import tempfile
from collections.abc import Iterator, Sequence, Set
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow.compute as pc

from dpr import layout
from dpr.deletions import live_rows
from dpr.errors import DprError, IntegrityError
from dpr.fingerprint import passage_key
from dpr.index.train import read_index
from dpr.index.verify import stored_ids
from dpr.manifest import Deletions, SegmentEntry, Snapshot, SnapshotBody
from dpr.records import ObjectRef, fetch_object
from dpr.segment import check_segment, iter_groups
from dpr.snapshot import numbers, read_snapshot
from dpr.store import ObjectInfo, Store
from dpr.store.lease import store_time
from dpr.store.reader import open_object

GRACE_SECONDS = 24 * 3600.0
"""Younger objects are never collected: a run that has not published yet may have made them."""


def referenced(body: SnapshotBody) -> Iterator[ObjectRef]:
    """Every object that a snapshot names."""
    yield body.codebook.object
    yield from (shard.object for shard in body.index.shards)
    for entry in body.segments:
        yield entry.object
        if entry.deletions:
            yield entry.deletions.object


@dataclass(frozen=True)
class Problem:
    """Something that is not as recorded."""

    snapshot: int
    object: str
    said: str


def verify(store: Store, snapshots: Sequence[int], *, deep: bool = False) -> tuple[int, list[Problem]]:
    """Check every object that the snapshots name; returns how many were checked, and what is wrong.

    Sizes, existence and counts always; with `deep` every checksum, each segment's rows and keys, the index's ids.
    """
    problems: list[Problem] = []
    checked: set[str] = set()
    for number in snapshots:
        body = read_snapshot(store, number).body
        for ref in referenced(body):
            if ref.name not in checked:
                checked.add(ref.name)
                problems += _problems_of(store, number, ref, deep=deep)
        broken = {problem.object for problem in problems}
        try:
            body.check()
            if deep and not broken & {ref.name for ref in referenced(body)}:
                _check_contents(store, body)
        except DprError as error:
            problems.append(Problem(number, layout.snapshot(number), str(error)))
    return len(checked), problems


def _problems_of(store: Store, number: int, ref: ObjectRef, *, deep: bool) -> list[Problem]:
    try:
        if deep:
            with tempfile.TemporaryDirectory() as folder:
                fetch_object(store, ref, Path(folder))
        elif (size := store.size(ref.name)) != ref.size_bytes:
            raise IntegrityError(f"has {size} bytes, recorded are {ref.size_bytes}")
    except DprError as error:
        return [Problem(number, ref.name, str(error))]
    return []


def _check_contents(store: Store, body: SnapshotBody) -> None:
    expected = [np.empty(0, np.int64)]
    with tempfile.TemporaryDirectory() as folder:
        for entry in body.segments:
            _check_keys(fetch_object(store, entry.object, Path(folder)), entry, body.encoder_id)
            expected.append((entry.number << 32) | live_rows(store, entry))
        shards = [read_index(fetch_object(store, ref.object, Path(folder)), mapped=True) for ref in body.index.shards]
        ids = [stored_ids(shard) for shard in shards]
    rows = sum(int(shard.ntotal) for shard in shards)
    if rows != body.passages:
        raise IntegrityError(f"the index holds {rows} vectors, the snapshot {body.passages} passages")
    found = np.sort(np.concatenate(ids))
    if not np.array_equal(found, np.sort(np.concatenate(expected))):
        raise IntegrityError("the ids in the index are not those of the live rows, each once")


def _check_keys(path: Path, entry: SegmentEntry, encoder_id: str) -> None:
    check_segment(path, encoder_id, entry.rows)
    for table in iter_groups(path, ["id", "title", "text", "key", "embedding"]):
        for row in table.select(["id", "title", "text", "key"]).to_pylist():
            if passage_key(row["id"], row["title"], row["text"]) != row["key"]:
                raise IntegrityError(f"passage {row['id']!r} of segment {entry.segment_id} does not have its key")
        if not pc.all(pc.is_finite(table["embedding"].combine_chunks().flatten().cast("float32"))).as_py():
            raise IntegrityError(f"segment {entry.segment_id} holds a vector that is not finite")


@dataclass(frozen=True)
class Garbage:
    """What nothing names any more."""

    objects: list[ObjectInfo]

    @property
    def size_bytes(self) -> int:
        return sum(info.size_bytes for info in self.objects)


def find_garbage(store: Store, keep: int) -> Garbage:
    """Objects that neither the last `keep` snapshots nor a snapshot that somebody reads names.

    The caller holds the lease, so no run is under way; what a run that died has made is kept for a day, since starting
    it again would use it.
    """
    now = store_time(store)
    there = numbers(store)
    kept = there[-keep:]
    names = {layout.snapshot(number) for number in kept}
    runs: set[str] = set()
    prefixes: set[str] = set()
    for number in kept:
        snapshot = read_snapshot(store, number)
        names |= _names_of(snapshot)
        runs.add(layout.run(snapshot.run_id))
        prefixes.add(f"{layout.TRUTH}{snapshot.body.encoder_id}/")
    found = []
    for info in store.list():
        named = info.name in names or info.name.startswith((layout.LEASE, *runs, *prefixes))
        if not named and now - info.modified > GRACE_SECONDS:
            found.append(info)
    return Garbage(found)


def _names_of(snapshot: Snapshot) -> set[str]:
    body = snapshot.body
    names = {ref.name for ref in referenced(body)}
    names |= {layout.part(body.codebook.codebook_id, entry.segment_id) for entry in body.segments}
    names |= {layout.refused(body.encoder_id, entry.segment_id) for entry in body.segments}
    return names | {layout.record(name) for name in names}


def collect(store: Store, garbage: Garbage) -> None:
    """Delete garbage: snapshots first, so that none ever names what is gone."""
    for info in sorted(garbage.objects, key=lambda info: not info.name.startswith(layout.SNAPSHOTS)):
        store.delete(info.name)


@dataclass(frozen=True)
class Difference:
    """Passage ids that differ between two snapshots."""

    added: list[str]
    removed: list[str]
    changed: list[str]


def compare(store: Store, old: int, new: int) -> Difference:
    """What happened to passages between two snapshots; reads ids and keys of the segments that are not in both."""
    before, after = read_snapshot(store, old).body, read_snapshot(store, new).body
    same = {(e.segment_id, e.deletions) for e in before.segments} & {
        (e.segment_id, e.deletions) for e in after.segments
    }
    keys_before, keys_after = _keys(store, before, same), _keys(store, after, same)
    added = [i for i in keys_after if i not in keys_before]
    removed = [i for i in keys_before if i not in keys_after]
    changed = [i for i, key in keys_after.items() if i in keys_before and keys_before[i] != key]
    return Difference(sorted(added), sorted(removed), sorted(changed))


def _keys(store: Store, body: SnapshotBody, without: Set[tuple[str, Deletions | None]]) -> dict[str, bytes]:
    keys: dict[str, bytes] = {}
    for entry in body.segments:
        if (entry.segment_id, entry.deletions) in without:
            continue
        first, live = 0, live_rows(store, entry)
        for table in iter_groups(open_object(store, entry.object.name), ["id", "key"]):
            rows = live[np.searchsorted(live, first) : np.searchsorted(live, first + table.num_rows)] - first
            chosen = table.take(rows)
            keys |= dict(zip(chosen["id"].to_pylist(), chosen["key"].to_pylist(), strict=True))
            first += table.num_rows
    return keys
