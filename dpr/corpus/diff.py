"""The difference between the corpus and the segments there are: what to embed, what to copy, what is dead.

Everything is compared as 128-bit hashes in arrays (32 bytes a corpus passage, 32 a stored row); texts are never read.
"""

import hashlib
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from dpr import layout
from dpr.corpus.compact import segments_to_copy
from dpr.corpus.quarantine import QuarantinedRow, write_quarantine
from dpr.corpus.read import read_again
from dpr.corpus.rows import Slice
from dpr.deletions import read_deletions, store_deletions
from dpr.fingerprint import fingerprint
from dpr.manifest import SegmentEntry, SnapshotBody
from dpr.recipe import CorpusConfig
from dpr.records import Document, ObjectRef, Record, put_object
from dpr.segment import HASH, read_hashes
from dpr.store import Store
from dpr.store.reader import open_object

CHANGES_SCHEMA = pa.schema(
    [
        pa.field("slice", pa.int32(), nullable=False),  # whose shard holds the text; -1: the source segment does
        pa.field("row", pa.int32(), nullable=False),  # row in that shard
        pa.field("key", HASH, nullable=False),
        pa.field("content_hash", HASH, nullable=False),
        pa.field("source", pa.int32(), nullable=False),  # number of the segment that holds the vector; -1: embed it
    ]
)

_CHANGES_STORED: dict[str, Any] = {
    "use_dictionary": ["slice", "source"],
    # hashes cannot be made smaller
    "compression": {"slice": "snappy", "row": "snappy", "source": "snappy", "key": "none", "content_hash": "none"},
}


class PlannedSegment(Document):
    """One segment to make: row group `group` of the changes object."""

    number: int
    segment_id: str
    kind: Literal["embed", "copy"]
    group: int
    rows: int


class Changes(Document):
    """What a run has to do, and what it found."""

    passages: int
    new: int
    borrowed: int
    duplicates: int
    dead: int
    """Passages of the base that are gone."""
    restored: int
    """Stored rows that were dead in the base and live again."""
    kept: list[SegmentEntry]
    """Segments of the base that stay, with their deletions as of now."""
    planned: list[PlannedSegment]
    next_segment_number: int

    @property
    def embed_rows(self) -> int:
        return sum(unit.rows for unit in self.planned if unit.kind == "embed")


@dataclass(frozen=True)
class DiffInputs:
    """What `find_changes` compares."""

    run_id: str
    encoder_id: str
    corpus: CorpusConfig
    slices: Sequence[Slice]
    base: SnapshotBody | None
    segment_rows: int
    compact_below: float


@dataclass(frozen=True)
class _Rows:
    """Corpus rows or stored rows, column by column, all of length N."""

    group: npt.NDArray[np.int32]
    """Slice number or segment number."""
    row: npt.NDArray[np.int64]
    """Position in the slice, or row of shard or segment."""
    key: pa.FixedSizeBinaryArray
    content_hash: pa.FixedSizeBinaryArray
    """In corpus rows: the id hash, since only ids are compared there."""

    def take(self, rows: npt.NDArray[np.int64]) -> "_Rows":
        indices = pa.array(rows)
        return _Rows(self.group[rows], self.row[rows], self.key.take(indices), self.content_hash.take(indices))


def find_changes(store: Store, inputs: DiffInputs, scans: Sequence[Record]) -> Record:
    """Compare the scanned corpus with the base; the record's facts are a `Changes`, its objects the changes file.

    The first passage with an id is kept, later ones are quarantined. Every stored row whose key is in the corpus lives,
    also one that was dead before, so a reverted edit costs nothing.
    """
    corpus = _corpus_rows(store, inputs.run_id, scans)
    first = first_of_each(corpus.content_hash)  # here the column holds id hashes
    kept_key = corpus.key.filter(pa.array(first))
    entries = inputs.base.segments if inputs.base else []
    stored = _stored_rows(store, entries)
    alive = _is_in(stored.key, kept_key)
    lived = _lived(store, entries)
    kept, compacted = _apply_deletions(store, inputs, alive)

    new = _new_rows(store, inputs, scans, corpus, first)
    unseen = ~_is_in(new.content_hash, stored.content_hash)
    is_first = np.zeros(len(unseen), np.bool_)
    is_first[unseen] = first_of_each(new.content_hash.filter(pa.array(unseen)))
    next_number = inputs.base.next_segment_number if inputs.base else 0

    embed = new.take(np.flatnonzero(is_first))
    embed_pieces = _pieces(len(embed.key), inputs.segment_rows)
    embed_number = np.repeat(next_number + np.arange(len(embed_pieces)), [len(piece) for piece in embed_pieces])
    borrow = new.take(np.flatnonzero(~is_first))
    sources = np.concatenate([stored.group, embed_number.astype(np.int32)])
    holders = pa.concat_arrays([stored.content_hash, embed.content_hash])
    borrow_source = sources[_places(borrow.content_hash, holders)]
    moved = stored.take(np.flatnonzero(alive & np.isin(stored.group, compacted)))

    tables = [_table(embed.take(piece), np.full(len(piece), -1)) for piece in embed_pieces]
    copies = pa.concat_tables([_table(borrow, borrow_source), _moved_table(moved)])
    tables += [copies.slice(piece[0], len(piece)) for piece in _pieces(copies.num_rows, inputs.segment_rows)]
    changes = Changes(
        passages=int(first.sum()),
        new=len(new.key),
        borrowed=len(borrow.key),
        duplicates=int((~first).sum()),
        dead=int((lived & ~alive).sum()),
        restored=int((~lived & alive).sum()),
        kept=kept,
        planned=[
            _planned(
                inputs.encoder_id, next_number + group, group, "embed" if group < len(embed_pieces) else "copy", table
            )
            for group, table in enumerate(tables)
        ],
        next_segment_number=next_number + len(tables),
    )
    objects = [_store_tables(store, inputs.run_id, tables)]
    objects += _store_duplicates(store, inputs, corpus, first)
    return Record(unit="diff", rows=changes.passages, objects=objects, facts=changes.model_dump(mode="json"))


def _corpus_rows(store: Store, run_id: str, scans: Sequence[Record]) -> _Rows:
    groups: list[npt.NDArray[np.int32]] = []
    tables: list[pa.Table] = []
    for number, scan in enumerate(scans):
        table = pq.read_table(open_object(store, layout.scan_keys(run_id, number)))
        tables.append(table)
        groups.append(np.full(scan.rows, number, np.int32))
    table = pa.concat_tables(tables)
    return _Rows(
        np.concatenate(groups),
        table["position"].to_numpy(),
        _one_array(table["key"]),
        _one_array(table["id_hash"]),
    )


def _lived(store: Store, entries: Sequence[SegmentEntry]) -> npt.NDArray[np.bool_]:
    """Which stored rows were live in the base, in the order of `_stored_rows`."""
    masks = [np.empty(0, np.bool_)]
    for entry in entries:
        mask = np.ones(entry.rows, np.bool_)
        mask[read_deletions(store, entry)] = False
        masks.append(mask)
    return np.concatenate(masks)


def _stored_rows(store: Store, entries: Sequence[SegmentEntry]) -> _Rows:
    hashes = [read_hashes(open_object(store, entry.object.name)) for entry in entries]
    empty = pa.array([], HASH)
    return _Rows(
        np.concatenate([np.empty(0, np.int32), *(np.full(entry.rows, entry.number, np.int32) for entry in entries)]),
        np.concatenate([np.empty(0, np.int64), *(np.arange(entry.rows) for entry in entries)]),
        pa.concat_arrays([empty, *(columns["key"] for columns in hashes)]),
        pa.concat_arrays([empty, *(columns["content_hash"] for columns in hashes)]),
    )


def _new_rows(
    store: Store, inputs: DiffInputs, scans: Sequence[Record], corpus: _Rows, first: npt.NDArray[np.bool_]
) -> _Rows:
    groups, rows, keys, hashes = [np.empty(0, np.int32)], [np.empty(0, np.int64)], [], []
    starts = np.searchsorted(corpus.group, np.arange(len(scans) + 1))
    for number, scan in enumerate(scans):
        if not scan.facts["new"]:
            continue
        shard = open_object(store, layout.scan_shard(inputs.run_id, number))
        table = pq.read_table(shard, columns=["position", "key", "content_hash"])
        mine = slice(starts[number], starts[number + 1])
        wanted = np.flatnonzero(np.isin(table["position"].to_numpy(), corpus.row[mine][first[mine]]))
        groups.append(np.full(len(wanted), number, np.int32))
        rows.append(wanted)
        keys.append(_one_array(table["key"]).take(pa.array(wanted)))
        hashes.append(_one_array(table["content_hash"]).take(pa.array(wanted)))
    empty = pa.array([], HASH)
    return _Rows(
        np.concatenate(groups),
        np.concatenate(rows),
        pa.concat_arrays([empty, *keys]),
        pa.concat_arrays([empty, *hashes]),
    )


def _apply_deletions(
    store: Store, inputs: DiffInputs, alive: npt.NDArray[np.bool_]
) -> tuple[list[SegmentEntry], list[int]]:
    """The segments that stay, with deletion sets stored, and the numbers of those to copy (or to drop, if empty)."""
    entries = inputs.base.segments if inputs.base else []
    rows = np.array([entry.rows for entry in entries], np.int64)
    masks = np.split(alive, np.cumsum(rows)[:-1]) if entries else []
    live = np.array([mask.sum() for mask in masks], np.int64)
    copied = segments_to_copy(rows, live, inputs.segment_rows, inputs.compact_below)
    kept: list[SegmentEntry] = []
    for entry, lives, copy in zip(entries, masks, copied, strict=True):
        if not copy:
            dead = np.flatnonzero(~lives).astype(np.uint32)
            deletions = store_deletions(store, entry.segment_id, dead) if len(dead) else None
            kept.append(entry.model_copy(update={"deletions": deletions}))
    return kept, [entry.number for entry, copy in zip(entries, copied, strict=True) if copy]


def _planned(
    encoder_id: str, number: int, group: int, kind: Literal["embed", "copy"], table: pa.Table
) -> PlannedSegment:
    digest = hashlib.blake2b(digest_size=16)
    for chunk in table["key"].chunks:
        digest.update(_bytes_of(chunk))
    segment_id = fingerprint({"encoder": encoder_id, "kind": kind, "keys": digest.hexdigest()})
    return PlannedSegment(number=number, segment_id=segment_id, kind=kind, group=group, rows=table.num_rows)


def _store_tables(store: Store, run_id: str, tables: Sequence[pa.Table]) -> ObjectRef:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "changes.parquet")
        with pq.ParquetWriter(path, CHANGES_SCHEMA, **_CHANGES_STORED) as writer:
            for table in tables:
                writer.write_table(table, row_group_size=table.num_rows)
        return put_object(store, layout.changes(run_id), path)


def _store_duplicates(store: Store, inputs: DiffInputs, corpus: _Rows, first: npt.NDArray[np.bool_]) -> list[ObjectRef]:
    """Quarantine the later passages of each id, with their raw bytes read again from the corpus."""
    rows: list[QuarantinedRow] = []
    for number in np.unique(corpus.group[~first]):
        positions = set(corpus.row[~first & (corpus.group == number)].tolist())
        for row in read_again(inputs.slices[number], inputs.corpus, positions):
            if row.passage is not None:
                reason = f"duplicate id: an earlier passage has {row.passage.id!r}"
                rows.append(QuarantinedRow(row.source, row.position, reason, row.raw))
    if not rows:
        return []
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "duplicates.parquet")
        write_quarantine(path, rows)
        return [put_object(store, layout.unit_quarantine(inputs.run_id, "duplicates"), path)]


def _table(rows: _Rows, source: npt.NDArray[np.int64]) -> pa.Table:
    columns = [rows.group, rows.row, rows.key, rows.content_hash, source]
    return pa.table([pa.array(c, f.type) for c, f in zip(columns, CHANGES_SCHEMA, strict=True)], schema=CHANGES_SCHEMA)


def _moved_table(stored: _Rows) -> pa.Table:
    nowhere = np.full(len(stored.key), -1)
    return _table(_Rows(nowhere, nowhere, stored.key, stored.content_hash), stored.group.astype(np.int64))


def _pieces(rows: int, most: int) -> list[npt.NDArray[np.int64]]:
    """Row numbers cut into the fewest pieces of at most `most`, as equal as can be."""
    return np.array_split(np.arange(rows), -(-rows // most)) if rows else []


def first_of_each(hashes: pa.FixedSizeBinaryArray) -> npt.NDArray[np.bool_]:
    """Which rows (N,) are the first with their hash.

    Only rows that share the first half of their hash with another need be looked at whole: few, and found by sorting.
    """
    halves = np.frombuffer(_bytes_of(hashes), np.uint64)[::2]
    ordered = np.sort(halves)
    shared = np.flatnonzero(np.isin(halves, ordered[1:][ordered[1:] == ordered[:-1]]))
    first = np.ones(len(hashes), np.bool_)
    # dictionary codes grow by one at each first appearance
    codes = pc.dictionary_encode(hashes.take(pa.array(shared))).indices.to_numpy(zero_copy_only=False)
    first[shared] = np.diff(np.maximum.accumulate(codes), prepend=-1) > 0
    return first


def _is_in(hashes: pa.FixedSizeBinaryArray, among: pa.FixedSizeBinaryArray) -> npt.NDArray[np.bool_]:
    return _places(hashes, among) >= 0


def _places(hashes: pa.FixedSizeBinaryArray, among: pa.FixedSizeBinaryArray) -> npt.NDArray[np.int64]:
    """Where each of `hashes` first stands in `among`, -1 where it does not."""
    if not (len(hashes) and len(among)):  # spare Arrow a table of the other
        return np.full(len(hashes), -1, np.int64)
    found: npt.NDArray[np.int64] = pc.index_in(hashes, value_set=among).fill_null(-1).to_numpy().astype(np.int64)
    return found


def _one_array(column: pa.ChunkedArray) -> pa.FixedSizeBinaryArray:
    return pa.concat_arrays([pa.array([], HASH), *(chunk.cast(HASH) for chunk in column.chunks)])


def _bytes_of(array: pa.FixedSizeBinaryArray) -> memoryview:
    return memoryview(array.buffers()[1])[array.offset * 16 : (array.offset + len(array)) * 16]
