"""Looking into a store: verifying it, comparing snapshots."""

import tempfile
from collections.abc import Iterator, Sequence, Set
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from dpr import layout
from dpr.deletions import live_rows
from dpr.errors import DprError, IntegrityError
from dpr.fingerprint import content_hash, id_hash, passage_key
from dpr.index.merge import ROW_BITS
from dpr.index.train import read_index
from dpr.index.verify import stored_ids
from dpr.manifest import Deletions, SegmentEntry, SnapshotBody
from dpr.records import ObjectRef, fetch_object, read_record
from dpr.segment import HASH, check_segment, iter_groups
from dpr.snapshot import open_snapshot
from dpr.store import Store
from dpr.store.reader import open_object


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
        snapshot, marker = open_snapshot(store, number)
        with marker:
            named = [*snapshot.body.objects(), *_parts(store, snapshot.body)]
            new = [ref for ref in named if ref.name not in checked]
            checked |= {ref.name for ref in new}
            for ref in new:
                problems += _problems_of(store, number, ref, deep=deep)
            broken = {problem.object for problem in problems}
            try:
                snapshot.body.check()
                if deep and not broken & {ref.name for ref in snapshot.body.objects()}:
                    _check_contents(store, snapshot.body)
            except DprError as error:
                problems.append(Problem(number, layout.snapshot(number), str(error)))
    return len(checked), problems


def _parts(store: Store, body: SnapshotBody) -> Iterator[ObjectRef]:
    """The parts of a snapshot's segments: no answer needs them, and the next run does."""
    for entry in body.segments:
        record = read_record(store, layout.record(layout.part(body.codebook.codebook_id, entry.segment_id)))
        yield from record.objects if record else []


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
    index_ids, id_hashes = [np.empty(0, np.int64)], [pa.array([], HASH)]
    for entry in body.segments:
        live = live_rows(store, entry)
        if len(live) != entry.live_rows:
            raise IntegrityError(
                f"the deletion set of segment {entry.segment_id} leaves {len(live)} live rows, the snapshot says "
                f"{entry.live_rows}"
            )
        with tempfile.TemporaryDirectory() as folder:
            hashes = _check_rows(fetch_object(store, entry.object, Path(folder)), entry, body.encoder_id)
        id_hashes.append(hashes.take(pa.array(live)))
        index_ids.append((entry.number << ROW_BITS) | live)
    expected = np.concatenate(index_ids)
    _check_each_once(pa.concat_arrays(id_hashes), expected)
    with tempfile.TemporaryDirectory() as folder:
        shards = [read_index(fetch_object(store, ref.object, Path(folder)), mapped=True) for ref in body.index.shards]
        found = np.sort(np.concatenate([stored_ids(shard) for shard in shards]))
        rows = sum(int(shard.ntotal) for shard in shards)
    if rows != body.passages:
        raise IntegrityError(f"the index holds {rows} vectors, the snapshot {body.passages} passages")
    if not np.array_equal(found, np.sort(expected)):
        raise IntegrityError("the ids in the index are not those of the live rows, each once")


def _check_rows(path: Path, entry: SegmentEntry, encoder_id: str) -> pa.FixedSizeBinaryArray:
    """Check keys and vectors of a segment; returns the hashes of its passage ids (N,)."""
    check_segment(path, encoder_id, entry.rows)
    hashes: list[bytes] = []
    for table in iter_groups(path, ["id", "title", "text", "key", "content_hash", "embedding"]):
        for row in table.drop_columns("embedding").to_pylist():
            stored = row["key"], row["content_hash"]
            if stored != (passage_key(row["id"], row["title"], row["text"]), content_hash(row["title"], row["text"])):
                raise IntegrityError(f"passage {row['id']!r} of segment {entry.segment_id} does not have its key")
        if not pc.all(pc.is_finite(table["embedding"].combine_chunks().flatten().cast("float32"))).as_py():
            raise IntegrityError(f"segment {entry.segment_id} holds a vector that is not finite")
        hashes += map(id_hash, table["id"].to_pylist())
    return pa.array(hashes, HASH)


def _check_each_once(id_hashes: pa.FixedSizeBinaryArray, index_ids: npt.NDArray[np.int64]) -> None:
    codes = pc.dictionary_encode(id_hashes).indices.to_numpy(zero_copy_only=False)
    repeated = np.flatnonzero(np.bincount(codes, minlength=1)[codes] > 1)
    if len(repeated):
        same = index_ids[codes == codes[repeated[0]]][:2].tolist()
        where = " and ".join(f"row {i % (1 << ROW_BITS)} of segment number {i >> ROW_BITS}" for i in same)
        raise IntegrityError(f"a passage id is there twice: {where} are live and have the same one")


@dataclass(frozen=True)
class Difference:
    """Passage ids that differ between two snapshots."""

    added: list[str]
    removed: list[str]
    changed: list[str]


def compare(store: Store, old: int, new: int) -> Difference:
    """What happened to passages between two snapshots; reads ids and keys of the segments that are not in both."""
    before, reading_before = open_snapshot(store, old)
    with reading_before:
        after, reading_after = open_snapshot(store, new)
        with reading_after:
            return _difference(store, before.body, after.body)


def _difference(store: Store, before: SnapshotBody, after: SnapshotBody) -> Difference:
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
