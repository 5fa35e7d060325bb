"""The embed stage: rows of the changes file in, one segment a unit out.

Three operators that overlap when an executor runs them apart: load and tokenise (CPU), encode (the model), write (CPU).
Shapes: N rows, D dimensions.
"""

import json
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from dpr import layout
from dpr.corpus.quarantine import QuarantinedRow, write_quarantine
from dpr.corpus.read import read_again
from dpr.corpus.rows import Slice
from dpr.encoder.compute import Compute
from dpr.encoder.spec import EncoderSpec, resolve
from dpr.encoder.tokens import LoadedTokenizer, TokenBatch, TowerTokenizer, load_tokenizer
from dpr.errors import EncoderError
from dpr.pipeline.bisect import encode_rows
from dpr.pipeline.execute import Step, Unit
from dpr.pipeline.meter import BusyClock
from dpr.recipe import CorpusConfig, EncoderConfig
from dpr.records import Record, put_object
from dpr.segment import PASSAGE_COLUMNS, Vectors, check_segment, read_hashes, read_rows, vectors_of, write_segment
from dpr.store import Store, open_store
from dpr.store.reader import open_object


@dataclass(frozen=True)
class EmbedContext:
    """What every operator of the stage needs; small, and the same for all units."""

    store_url: str
    run_id: str
    encoder: EncoderConfig
    encoder_id: str
    corpus: CorpusConfig
    slices: tuple[Slice, ...]

    def open_spec(self) -> EncoderSpec:
        """The encoder as this machine sees it; EncoderError if it is another one than the driver's."""
        spec = resolve(self.encoder)
        if spec.encoder_id != self.encoder_id:
            raise EncoderError(
                f"model {self.encoder.model} is encoder {spec.encoder_id} on this machine and {self.encoder_id} where "
                "the run was planned; give all machines the same model files"
            )
        return spec


def shared_tokenizer(context: EmbedContext) -> LoadedTokenizer:
    """The passage tower's, for all tokenisers: they need not import what loads it."""
    return load_tokenizer(context.open_spec().passage)


def embed_steps(
    context: EmbedContext, compute: Compute, tokenizer: Callable[[], LoadedTokenizer], tokenizer_threads: int
) -> list[Step]:
    """Tokenise → encode → write, for units of kind `embed`.

    Texts do not pass through the encoder, where they would only be copied: the writer reads them again.
    """
    return [
        Step(Tokenise, (context, tokenizer, tokenizer_threads), on="actor"),
        Step(Encode, (context, compute), on="encoder"),
        Step(WriteSegment, (context,)),
    ]


def copy_steps(context: EmbedContext, segment_ids: Mapping[int, str]) -> list[Step]:
    """Copy → write, for units of kind `copy`: rows whose vectors are in other segments already.

    `segment_ids`: number → id, of the base and of this run.
    """
    return [Step(CopyVectors, (context, segment_ids)), Step(WriteSegment, (context,))]


class Tokenise:
    """Loads a unit's texts and tokenises them."""

    def __init__(self, context: EmbedContext, tokenizer: Callable[[], LoadedTokenizer], threads: int) -> None:
        self._store, self._context = open_store(context.store_url), context
        self._tokenizer = TowerTokenizer(context.open_spec().passage, threads, tokenizer())

    def __call__(self, unit: Unit) -> Unit:
        started = time.perf_counter()
        texts = _passages_of(self._store, self._context.run_id, unit["group"], ("title", "text"))
        read = time.perf_counter()
        tokens = self._tokenizer.passages(texts["title"].to_pylist(), texts["text"].to_pylist())
        seconds = {"read_seconds": read - started, "tokenise_seconds": time.perf_counter() - read}
        return unit | seconds | {"tokens": tokens.to_bytes()}


class Encode:
    """Runs the model over a unit's tokens; a row that cannot be encoded is found by bisection and left out.

    Called from two threads at once it never waits between units: the batches of the second stand in the encoder's queue
    behind those of the first, and unpacking one unit and packing another take place while a third computes.
    """

    def __init__(self, context: EmbedContext, compute: Compute) -> None:
        from dpr.encoder.encode import TowerEncoder  # PyTorch: seconds and 300 MB that the driver is spared

        self._encoder = TowerEncoder(context.open_spec().passage, compute)
        self._encoder.limit_seconds(np.zeros(0, np.int64))  # measures the device before it has work
        self._clock = BusyClock()

    def __call__(self, unit: Unit) -> Unit:
        tokens = TokenBatch.from_bytes(unit.pop("tokens"))
        with self._clock:
            vectors_ND, bad = encode_rows(self._encoder, tokens)
        busy, waited = self._clock.take()
        return unit | {
            "encode_seconds": busy,
            "wait_seconds": waited,
            "limit_seconds": self._encoder.limit_seconds(tokens.lengths()),
            "encoder": self._encoder.choice,
            "vectors": vectors_ND.tobytes(),
            "dim": vectors_ND.shape[1],
            "bad": json.dumps(bad),
            "tokens": len(tokens.ids_T),
        }


class CopyVectors:
    """Finds a unit's vectors, and for moved rows also their texts, in the segments that hold them."""

    def __init__(self, context: EmbedContext, segment_ids: Mapping[int, str]) -> None:
        self._store, self._context, self._segment_ids = open_store(context.store_url), context, segment_ids

    def __call__(self, unit: Unit) -> Unit:
        rows = _read_unit(self._store, self._context.run_id, unit["group"])
        tables: list[pa.Table] = []
        vectors: list[Vectors] = []
        bad: dict[int, str] = {}
        for source in np.unique(rows["source"].to_numpy()):
            mine = rows.filter(pc.equal(rows["source"], int(source)))
            name = layout.segment(self._context.encoder_id, self._segment_ids[int(source)])
            borrowed = mine.filter(pc.greater_equal(mine["slice"], 0))
            moved = mine.filter(pc.less(mine["slice"], 0))
            if moved.num_rows:
                table = self._rows_with(name, "key", moved)
                tables.append(table.select(PASSAGE_COLUMNS))
                vectors.append(vectors_of(table))
            if borrowed.num_rows:
                table, missing = self._borrow(name, borrowed)
                bad |= {sum(t.num_rows for t in tables) + row: "the encoder refused the same text" for row in missing}
                tables.append(_texts_of(self._store, self._context.run_id, borrowed, PASSAGE_COLUMNS))
                vectors.append(table)
        vectors_ND = np.concatenate(vectors)
        return unit | {
            "passages": to_ipc(pa.concat_tables(tables)),
            "vectors": vectors_ND.tobytes(),
            "dim": vectors_ND.shape[1],
            "bad": json.dumps(bad),
            "tokens": 0,
        }

    def _rows_with(self, name: str, column: str, wanted: pa.Table) -> pa.Table:
        stored = read_hashes(open_object(self._store, name), (column,))[column]
        rows = np.flatnonzero(pc.is_in(stored, value_set=wanted[column].combine_chunks()))
        return read_rows(open_object(self._store, name), [*PASSAGE_COLUMNS, "embedding"], rows)

    def _borrow(self, name: str, wanted: pa.Table) -> tuple[Vectors, list[int]]:
        """Vectors (N, D) for `wanted` by content hash, and the row numbers of those that are not there (zeros)."""
        table = self._rows_with(name, "content_hash", wanted)
        where = pc.index_in(wanted["content_hash"], value_set=table["content_hash"].combine_chunks())
        missing = pc.is_null(where).to_numpy()
        source_ND = vectors_of(table)
        if not len(source_ND):
            source_ND = np.zeros((1, source_ND.shape[1]), np.float16)
        return source_ND[pc.fill_null(where, 0).to_numpy()], np.flatnonzero(missing).tolist()


class WriteSegment:
    """Writes a unit's segment, and beside it the rows that the encoder refused, for the quarantine of every run."""

    def __init__(self, context: EmbedContext) -> None:
        self._store, self._context = open_store(context.store_url), context

    def __call__(self, unit: Unit) -> Unit:
        started = time.perf_counter()
        if "passages" in unit:
            passages = from_ipc(unit["passages"])
        else:
            passages = _passages_of(self._store, self._context.run_id, unit["group"], PASSAGE_COLUMNS)
        vectors_ND = np.frombuffer(unit["vectors"], np.float16).reshape(-1, unit["dim"])
        bad = {int(row): reason for row, reason in json.loads(unit["bad"]).items()}
        objects = []
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, "segment.parquet")
            if bad:
                write_quarantine(path, self._refused(unit["group"], passages["key"], bad))
                name = layout.refused(self._context.encoder_id, unit["segment_id"])
                refused = put_object(self._store, name, path)
                good = np.setdiff1d(np.arange(len(vectors_ND)), list(bad))
                passages, vectors_ND = passages.take(pa.array(good)), vectors_ND[good]
            write_segment(path, passages, vectors_ND, self._context.encoder_id)
            check_segment(path, self._context.encoder_id, len(vectors_ND))
            objects.append(put_object(self._store, layout.segment(self._context.encoder_id, unit["segment_id"]), path))
            objects += [refused] if bad else []
        unit["write_seconds"] = time.perf_counter() - started
        facts = {"quarantined": len(bad), "tokens": unit["tokens"], "encoder": unit.get("encoder", "")}
        facts["seconds"] = {name[:-8]: value for name, value in unit.items() if name.endswith("_seconds")}
        record = Record(unit=f"segment-{unit['segment_id']}", rows=len(vectors_ND), objects=objects, facts=facts)
        return {"record": unit["record"], "done": record.to_bytes()}

    def _refused(self, group: int, keys: pa.ChunkedArray, bad: Mapping[int, str]) -> Iterator[QuarantinedRow]:
        """The rows of reasons `bad` as they stand in the corpus."""
        context, numbers = self._context, sorted(bad)
        planned = _read_unit(self._store, context.run_id, group)
        planned = planned.take(pc.index_in(keys.take(pa.array(numbers)), value_set=planned["key"].combine_chunks()))
        slices, rows = planned["slice"].to_numpy(), planned["row"].to_numpy()
        for slice_number in np.unique(slices):
            mine = np.flatnonzero(slices == slice_number)
            mine = mine[np.argsort(rows[mine])]
            shard = open_object(self._store, layout.scan_shard(context.run_id, slice_number))
            positions = read_rows(shard, ["position"], rows[mine])["position"].to_pylist()
            reasons = {position: bad[numbers[row]] for position, row in zip(positions, mine, strict=True)}
            for row in read_again(context.slices[slice_number], context.corpus, reasons.keys()):
                yield QuarantinedRow(row.source, row.position, reasons[row.position], row.raw)


def _read_unit(store: Store, run_id: str, group: int) -> pa.Table:
    return pq.ParquetFile(open_object(store, layout.changes(run_id))).read_row_group(group)


def _passages_of(store: Store, run_id: str, group: int, columns: Sequence[str]) -> pa.Table:
    """Some columns of the passages of an embed unit."""
    return _texts_of(store, run_id, _read_unit(store, run_id, group), columns)


def _texts_of(store: Store, run_id: str, rows: pa.Table, columns: Sequence[str]) -> pa.Table:
    """Some columns of `rows` (with slice, row: both ascending) from the shards that hold them."""
    numbers, shard_rows = rows["slice"].to_numpy(), rows["row"].to_numpy()
    tables = [
        read_rows(open_object(store, layout.scan_shard(run_id, number)), columns, shard_rows[numbers == number])
        for number in np.unique(numbers)
    ]
    return pa.concat_tables(tables)


def to_ipc(table: pa.Table) -> bytes:
    """A table as bytes, to travel between operators."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return sink.getvalue().to_pybytes()  # type: ignore[no-any-return]


def from_ipc(data: bytes) -> pa.Table:
    """The table that `to_ipc` packed."""
    return pa.ipc.open_stream(data).read_all()
