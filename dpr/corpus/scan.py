"""Scanning: one slice of the corpus in, its new passages, all its keys and its unusable rows out."""

import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from dpr import layout
from dpr.corpus.quarantine import QuarantinedRow, write_quarantine
from dpr.corpus.read import read_slice
from dpr.corpus.rows import Passage, Row, Slice
from dpr.fingerprint import content_hash, id_hash, passage_key
from dpr.recipe import CorpusConfig
from dpr.records import ObjectRef, Record, put_object
from dpr.segment import HASH, passage_schema
from dpr.store import Store

_BATCH_ROWS = 8192
_POSITION = pa.field("position", pa.int64(), nullable=False)
SHARD_SCHEMA = passage_schema().append(_POSITION)
_KEYS_STORED: dict[str, Any] = {
    "use_dictionary": False,
    "compression": "none",  # hashes cannot be made smaller
    "column_encoding": {"position": "DELTA_BINARY_PACKED"},
}
KEYS_SCHEMA = pa.schema([_POSITION, pa.field("id_hash", HASH, nullable=False), pa.field("key", HASH, nullable=False)])


class KnownKeys:
    """The keys already in segments, as two sorted arrays: 16 bytes a passage, shared by workers without copying."""

    def __init__(self, keys: pa.FixedSizeBinaryArray) -> None:
        halves = _halves(keys)
        order = np.lexsort((halves[:, 1], halves[:, 0]))
        self.high, self.low = np.ascontiguousarray(halves[order, 0]), np.ascontiguousarray(halves[order, 1])

    def __len__(self) -> int:
        return len(self.high)

    def contains(self, keys: pa.FixedSizeBinaryArray) -> npt.NDArray[np.bool_]:
        """Which of `keys` are known, as (N,) bool."""
        halves = _halves(keys)
        first = np.searchsorted(self.high, halves[:, 0], "left")
        last = np.searchsorted(self.high, halves[:, 0], "right")
        found = np.zeros(len(halves), np.bool_)
        single = last - first == 1
        found[single] = self.low[first[single]] == halves[single, 1]
        for row in np.flatnonzero(last - first > 1):  # two keys that share 64 bits: about never
            found[row] = halves[row, 1] in self.low[first[row] : last[row]]
        return found


def _halves(keys: pa.FixedSizeBinaryArray) -> npt.NDArray[np.uint64]:
    data = np.frombuffer(keys.buffers()[1], np.uint64) if len(keys) else np.empty(0, np.uint64)
    return data.reshape(-1, 2)[keys.offset : keys.offset + len(keys)]


@dataclass
class _Batch:
    positions: list[int] = field(default_factory=list)
    ids: list[str] = field(default_factory=list)
    titles: list[str] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)
    id_hashes: list[bytes] = field(default_factory=list)
    keys: list[bytes] = field(default_factory=list)

    def add(self, position: int, passage: Passage) -> None:
        self.positions.append(position)
        self.ids.append(passage.id)
        self.titles.append(passage.title)
        self.texts.append(passage.text)
        self.id_hashes.append(id_hash(passage.id))
        self.keys.append(passage_key(passage.id, passage.title, passage.text))


def scan_slice(store: Store, run_id: str, number: int, slice_: Slice, corpus: CorpusConfig, known: KnownKeys) -> Record:
    """Read slice `number` and store its keys, its new passages (key not in `known`) and its quarantined rows.

    Facts of the record: `new` and `quarantined` row counts; rows are the usable ones.
    """
    unusable: list[QuarantinedRow] = []
    counts = {"rows": 0, "new": 0}
    with tempfile.TemporaryDirectory() as folder:
        shard, keys, bad = Path(folder, "shard.parquet"), Path(folder, "keys.parquet"), Path(folder, "bad.parquet")
        with (
            pq.ParquetWriter(shard, SHARD_SCHEMA, compression="zstd") as new,
            pq.ParquetWriter(keys, KEYS_SCHEMA, **_KEYS_STORED) as all_,
        ):
            for batch in _batches(read_slice(slice_, corpus), unusable):
                key_array = pa.array(batch.keys, HASH)
                all_.write_batch(
                    pa.record_batch([batch.positions, pa.array(batch.id_hashes, HASH), key_array], schema=KEYS_SCHEMA)
                )
                wanted = np.flatnonzero(~known.contains(key_array))
                if len(wanted):
                    new.write_batch(_new_rows(batch, wanted))
                counts["rows"] += len(batch.keys)
                counts["new"] += len(wanted)
        objects = [put_object(store, layout.scan_keys(run_id, number), keys)]
        if counts["new"]:
            objects.append(put_object(store, layout.scan_shard(run_id, number), shard))
        objects += _store_quarantine(store, run_id, number, unusable, bad)
    facts = {"new": counts["new"], "quarantined": len(unusable)}
    return Record(unit=f"scan-{number:06d}", rows=counts["rows"], objects=objects, facts=facts)


def _store_quarantine(
    store: Store, run_id: str, number: int, unusable: list[QuarantinedRow], path: Path
) -> list[ObjectRef]:
    if not unusable:
        return []
    write_quarantine(path, unusable)
    return [put_object(store, layout.unit_quarantine(run_id, f"scan-{number:06d}"), path)]


def _batches(rows: Iterable[Row], unusable: list[QuarantinedRow]) -> Iterator[_Batch]:
    batch = _Batch()
    for row in rows:
        if row.passage is None:
            unusable.append(QuarantinedRow(row.source, row.position, row.reason, row.raw))
            continue
        batch.add(row.position, row.passage)
        if len(batch.keys) == _BATCH_ROWS:
            yield batch
            batch = _Batch()
    if batch.keys:
        yield batch


def _new_rows(batch: _Batch, wanted: npt.NDArray[np.int64]) -> pa.RecordBatch:
    columns: list[list[Any]] = [batch.ids, batch.titles, batch.texts, batch.keys, batch.positions]
    if len(wanted) < len(batch.keys):
        columns = [[column[row] for row in wanted] for column in columns]
    ids, titles, texts, keys, positions = columns
    hashes = [content_hash(title, text) for title, text in zip(titles, texts, strict=True)]
    arrays = [ids, titles, texts, keys, hashes, positions]
    return pa.record_batch(
        [pa.array(array, f.type) for array, f in zip(arrays, SHARD_SCHEMA, strict=True)], schema=SHARD_SCHEMA
    )
