"""Verifying a store: that every object that a snapshot names exists and is as recorded."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from dpr.errors import DprError, IntegrityError
from dpr.fingerprint import content_hash, id_hash, passage_key
from dpr.formats import layout
from dpr.formats.deletions import read_deletions
from dpr.formats.extra import EXTRA, key_texts_of
from dpr.formats.loose import read_loose
from dpr.formats.manifest import SegmentEntry, ShardEntry, SnapshotBody
from dpr.formats.objects import fetch_object, verify_bytes
from dpr.formats.records import ObjectRef, read_record
from dpr.formats.segment import HASH, PASSAGE_COLUMNS, check_segment, iter_groups, join_hashes
from dpr.formats.snapshots import open_snapshot, read_history
from dpr.formats.stored_vectors import vectors_of
from dpr.index.contents import stored_ids
from dpr.index.faiss_file import read_faiss
from dpr.index.loose_index import loose_ids
from dpr.index.row_ids import ROW_BITS
from dpr.lexical.postings import map_postings
from dpr.search.vectors import SegmentVectors
from dpr.stages.build import PartResult
from dpr.store import Store


@dataclass(frozen=True)
class Problem:
    """An object that is not as recorded."""

    snapshot: int
    object: str
    reason: str


def verify(store: Store, snapshots: Sequence[int], *, deep: bool = False) -> tuple[int, list[Problem]]:
    """Check every object that the snapshots name; return the number of checked objects, and the problems.

    Sizes, existence and counts always; with `deep` every checksum, each segment's rows and keys, the ids of the index,
    and the rows of the index of words.
    """
    problems: list[Problem] = []
    checked: set[str] = set()
    for number in snapshots:
        try:
            snapshot, marker = open_snapshot(store, number)
        except IntegrityError as error:
            problems.append(Problem(number, layout.snapshot(number), str(error)))
            continue
        with marker:
            parts, unreadable = _parts(store, number, snapshot.body)
            new = [ref for ref in (*snapshot.body.objects(), *parts) if ref.name not in checked]
            checked |= {ref.name for ref in new}
            problems += unreadable
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


def damaged_documents(store: Store) -> list[Problem]:
    """Return the snapshots whose documents are damaged. Raises IntegrityError if the live one is."""
    return [Problem(each.number, layout.snapshot(each.number), each.problem) for each in read_history(store).damaged]


def _parts(store: Store, number: int, body: SnapshotBody) -> tuple[list[ObjectRef], list[Problem]]:
    """Return the parts of a snapshot's segments, which only the next run needs, and records that cannot be read."""
    parts: list[ObjectRef] = []
    problems: list[Problem] = []
    for entry in body.segments:
        record = layout.record(layout.part(body.codebook.object.sha256, entry.object.sha256))
        try:
            result = read_record(store, record, PartResult)
        except IntegrityError as error:
            problems.append(Problem(number, record, str(error)))
        else:
            parts += result.objects() if result else ()
    return parts, problems


def _problems_of(store: Store, number: int, ref: ObjectRef, *, deep: bool) -> list[Problem]:
    try:
        if deep:
            verify_bytes(store, ref)
        elif (size := store.size(ref.name)) != ref.size_bytes:
            raise IntegrityError(f"has {size} bytes, recorded are {ref.size_bytes}")
    except DprError as error:
        return [Problem(number, ref.name, str(error))]
    return []


def _check_contents(store: Store, body: SnapshotBody) -> None:
    index_ids = [np.empty(0, np.int64)]
    id_hashes: list[pa.FixedSizeBinaryArray] = []
    deletions = read_deletions(store, body.deletions)
    for entry in body.segments:
        live = deletions.live_rows(entry)
        hashes = _check_rows(store, entry, body.encoder_id)["key" if body.windows else "id"]
        id_hashes.append(hashes.take(pa.array(live)))
        index_ids.append((entry.number << ROW_BITS) | live)
    expected = np.concatenate(index_ids)
    if body.lexical is not None:
        for part, entry in zip(body.lexical.parts, body.segments, strict=True):
            map_postings(fetch_object(store, part.object), entry.rows, part.object.name)
    _check_each_once(join_hashes(id_hashes), expected, "key" if body.windows else "passage id")
    found = [_live_ids(store, shard, expected) for shard in body.index.shards]
    found.append(_loose_ids(store, body))
    if not np.array_equal(np.sort(np.concatenate(found)), np.sort(expected)):
        raise IntegrityError("the ids in the index are not those of the live rows, each once")


def _live_ids(store: Store, shard: ShardEntry, live_ids: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Return the ids of a shard that live. Raises IntegrityError if its counts are not those recorded."""
    ids = stored_ids(read_faiss(fetch_object(store, shard.object), mapped=True))
    living = ids[np.isin(ids, live_ids)]
    if (len(ids), len(living)) != (shard.rows, shard.live_rows):
        raise IntegrityError(
            f"index shard {shard.object.name} holds {len(ids)} vectors of which {len(living)} live, the snapshot says "
            f"{shard.rows} and {shard.live_rows}"
        )
    return living


def _loose_ids(store: Store, body: SnapshotBody) -> npt.NDArray[np.int64]:
    """Return the ids of the loose rows. Raises IntegrityError if their vectors are not those of their segments."""
    loose = read_loose(store, body.index.loose, body.encoder.dim)
    for entry in body.segments:
        there = loose.only(loose.segments_N == entry.number)
        if not len(there):
            continue
        stored_ND = SegmentVectors.open(store, entry.object, verify=True).rows(there.rows_N.astype(np.int64))
        if stored_ND.tobytes() != there.vectors_ND.tobytes():
            raise IntegrityError(f"loose rows of segment {entry.segment_id} do not have the vectors of the segment")
    return loose_ids(loose)


def _check_rows(store: Store, entry: SegmentEntry, encoder_id: str) -> dict[str, pa.FixedSizeBinaryArray]:
    """Check keys and vectors of a segment, also as mapped; return the hashes of ids, and the keys, of N rows."""
    path = fetch_object(store, entry.object)
    check_segment(path, encoder_id, None, entry.rows)
    mapped = SegmentVectors.open(store, entry.object, verify=True)
    hashes: list[bytes] = []
    keys: list[bytes] = []
    has_extra = EXTRA in pq.read_schema(path).names
    for table in iter_groups(path, [*PASSAGE_COLUMNS, *([EXTRA] if has_extra else []), "embedding"]):
        rows = np.arange(len(hashes), len(hashes) + table.num_rows)
        for row in table.drop_columns("embedding").to_pylist():
            stored = row["key"], row["content_hash"]
            key = passage_key(row["id"], row["title"], row["text"], key_texts_of(row.get(EXTRA)))
            if stored != (key, content_hash(row["title"], row["text"])):
                raise IntegrityError(f"passage {row['id']!r} of segment {entry.segment_id} does not have its key")
        vectors_ND = vectors_of(table)
        if not np.isfinite(vectors_ND).all():
            raise IntegrityError(f"segment {entry.segment_id} holds a vector that is not finite")
        if vectors_ND.tobytes() != mapped.rows(rows).tobytes():
            raise IntegrityError(f"segment {entry.segment_id} keeps its vectors where no reader looks for them")
        hashes += map(id_hash, table["id"].to_pylist())
        keys += table["key"].to_pylist()
    return {"id": pa.array(hashes, HASH), "key": pa.array(keys, HASH)}


def _check_each_once(id_hashes: pa.FixedSizeBinaryArray, index_ids: npt.NDArray[np.int64], what: str) -> None:
    codes = pc.dictionary_encode(id_hashes).indices.to_numpy(zero_copy_only=False)
    repeated = np.flatnonzero(np.bincount(codes, minlength=1)[codes] > 1)
    if len(repeated):
        same = index_ids[codes == codes[repeated[0]]][:2].tolist()
        where = " and ".join(f"row {i % (1 << ROW_BITS)} of segment number {i >> ROW_BITS}" for i in same)
        raise IntegrityError(
            f"two live rows have the same {what}: {where}; roll back to a sound snapshot or run the recipe again"
        )
