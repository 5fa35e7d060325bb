"""The scan stage: every slice of the corpus gives its keys, its new passages and its unusable rows.

A unit is named by its slice, and a slice by its file's size and time (or ETag). So later runs reuse a
scan while the file is unchanged; `corpus.rescan: always` reads all files.
"""

import io
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from dpr.corpus.hashes import KnownKeys
from dpr.corpus.reading import read_slice
from dpr.corpus.rows import Passage, Row, Slice
from dpr.engine.room import Need, check_room
from dpr.engine.stage import Stage, Step, Work, recorded
from dpr.fingerprint import content_hash, fingerprint, id_hash, passage_key
from dpr.formats import layout
from dpr.formats.extra import EXTRA, ExtraValue, extra_array
from dpr.formats.manifest import SegmentEntry
from dpr.formats.objects import put_object, read_object
from dpr.formats.quarantine import QuarantinedRow, QuarantineWriter
from dpr.formats.records import ObjectRef, Result
from dpr.formats.segment import HASH
from dpr.formats.segment_hashes import gather_hashes
from dpr.recipe import CorpusConfig, ExtraType
from dpr.run import Run, RunPlan
from dpr.stages.passages import POSITION, row_key_texts, scanned_schema
from dpr.store import Store, open_store
from dpr.store.temporary import temporary_folder

BATCH_ROWS = 8192
MAX_COMPRESSION = 8
"""By which factor a scan's objects may be smaller than its slice; texts give 2 to 4, and hashes do not compress."""
KEYS_SCHEMA = pa.schema([POSITION, pa.field("id_hash", HASH, nullable=False), pa.field("key", HASH, nullable=False)])
_KEYS_STORED: dict[str, object] = {
    "use_dictionary": False,
    "compression": "none",  # hashes do not compress
    "column_encoding": {"position": "DELTA_BINARY_PACKED"},
}


@dataclass(frozen=True)
class ScanUnit:
    """One slice of the corpus."""

    record: str
    stem: str
    """Start of the names of its objects."""
    slice: Slice
    read_bytes: int
    rows: int = 0
    """Unknown before the scan."""


class ScanResult(Result):
    """The contents of a slice; `rows` are the usable ones."""

    new_rows: int
    """Rows whose passages were stored, since no segment held them at the time."""
    unusable_rows: int
    split_passages: int = 0
    """Passages whose texts were split into windows."""
    windows: int = 0
    """Rows that are windows of these passages."""
    keys: ObjectRef
    """Position, id hash and key of every usable row."""
    passages: ObjectRef | None
    """The new passages; None if there is none."""
    unusable: ObjectRef | None
    """Rows that cannot be used, in the form of quarantine; None if there is none."""


def scan(run: Run) -> list[ScanResult]:
    """Scan every slice of the corpus that no earlier run has scanned in its present state."""
    units = plan_scan(run)
    for note in run.plan.corpus.notes():
        run.progress.message("corpus", note)
    if trusted := trusted_files(units, run.plan.scanned):
        run.progress.message("scan", describe_trust(len({unit.slice.path for unit in units}), trusted))
    run.store.put_if_absent(layout.plan(run.run_id), _plan_document(run, units).to_bytes())
    known = run.executor.share(load_known_keys, run.store.url, [*run.base_segments, *run.retired])
    step = Step("scan", partial(ScanSlice, run.store.url, run.recipe.corpus, known))
    work = Work.of(recorded(run.store.url, ScanResult, step))
    return run.results(Stage("scan", units, ScanResult, work))


def plan_scan(run: Run) -> list[ScanUnit]:
    """Return one unit a slice."""
    units = []
    for slice_ in run.slices:
        scan_id = slice_.slice_id(run.recipe.corpus)
        if run.recipe.corpus.rescan == "always":
            scan_id = fingerprint([scan_id, run.run_id])
        stem = layout.scan(run.spec.encoder_id, scan_id)
        units.append(ScanUnit(layout.record(stem), stem, slice_, slice_.size_bytes))
    return units


def trusted_files(units: Sequence[ScanUnit], scanned: Set[str]) -> int:
    """Return how many files are not read: all their scans are among those `scanned` for the live snapshot. Pure."""
    unread = {unit.slice.path for unit in units if unit.record in scanned}
    return len(unread - {unit.slice.path for unit in units if unit.record not in scanned})


def describe_trust(files: int, trusted: int) -> str:
    """Return in a sentence how many files a run reads, and how many it trusts to be unchanged."""
    return (
        f"at most {files - trusted:,} of {files:,} files are read; {trusted:,} are trusted to hold what they held when "
        "they were scanned, since their size and time (or ETag) are the same"
    )


def _plan_document(run: Run, units: Sequence[ScanUnit]) -> RunPlan:
    records = [unit.record for unit in units]
    return RunPlan(encoder_id=run.spec.encoder_id, scans=records, kinds=run.plan.corpus.kinds)


def read_keys(store: Store, scanned: ScanResult) -> pa.Table:
    """Return position, id hash and key of every usable row of a scanned slice, verified."""
    return pq.read_table(io.BytesIO(read_object(store, scanned.keys)))


def load_known_keys(store_url: str, segments: Sequence[SegmentEntry]) -> KnownKeys:
    """Return the keys of all rows, dead or live, of some segments."""
    (keys,) = gather_hashes(open_store(store_url), segments, ("key",))
    return KnownKeys(keys)


def scan_need(unit: ScanUnit, known: KnownKeys) -> Need:
    """Estimate the need of a scan: in a store without segments, its passages are stored, compressed. Pure."""
    stored_bytes = 0 if len(known) else unit.slice.size_bytes // MAX_COMPRESSION
    advice = "lower corpus.slice_bytes (a file that is compressed, CSV, JSON or Arrow is one slice, so split it)"
    return Need(temporary_bytes=stored_bytes, store_bytes=stored_bytes, smaller=advice)


class ScanSlice:
    """Reads one slice and stores its keys, its new passages and its unusable rows."""

    def __init__(self, store_url: str, corpus: CorpusConfig, known: Callable[[], KnownKeys]) -> None:
        self._store, self._corpus, self._known = open_store(store_url), corpus, known()

    def __call__(self, unit: ScanUnit) -> ScanResult:
        check_room(self._store, "scan", unit.record, scan_need(unit, self._known))
        return scan_slice(self._store, self._corpus, self._known, unit)


def scan_slice(store: Store, corpus: CorpusConfig, known: KnownKeys, unit: ScanUnit) -> ScanResult:
    """Read a slice and store what is in it; new passages are those whose key is not `known`."""
    rows = new_rows = split_passages = more_windows = 0
    schema = scanned_schema(corpus)
    with temporary_folder() as folder:
        passages, keys, unusable = (Path(folder, f"{name}.parquet") for name in ("new", "keys", "bad"))
        with (
            pq.ParquetWriter(passages, schema, compression="zstd", write_page_checksum=True) as new_writer,
            pq.ParquetWriter(keys, KEYS_SCHEMA, **_KEYS_STORED) as key_writer,
            QuarantineWriter(unusable) as bad_writer,
        ):
            for batch in _batches(unit.slice, read_slice(unit.slice, corpus), corpus.columns.extra, bad_writer):
                key_array = pa.array(batch.keys, HASH)
                hashes = pa.array(batch.id_hashes, HASH)
                key_writer.write_batch(pa.record_batch([batch.positions, hashes, key_array], schema=KEYS_SCHEMA))
                new_N = np.flatnonzero(~known.contains(key_array))
                if len(new_N):
                    new_writer.write_batch(_new_passages(batch, new_N, schema))
                rows += len(batch.keys)
                numbers = unit.slice.window_numbers(np.array(batch.positions, np.int64))
                split_passages, more_windows = split_passages + (numbers == 1).sum(), more_windows + (numbers > 0).sum()
                new_rows += len(new_N)
        return ScanResult(
            rows=rows,
            new_rows=new_rows,
            unusable_rows=bad_writer.rows,
            split_passages=int(split_passages),
            windows=int(split_passages + more_windows),
            keys=put_object(store, f"{unit.stem}.keys", keys),
            passages=put_object(store, f"{unit.stem}.new", passages) if new_rows else None,
            unusable=put_object(store, f"{unit.stem}.bad", unusable) if bad_writer.rows else None,
        )


@dataclass
class _Batch:
    extra: Mapping[str, ExtraType]
    """Names and types of the extra columns."""
    positions: list[int] = field(default_factory=list)
    passages: list[Passage] = field(default_factory=list)
    extra_rows: list[tuple[ExtraValue, ...]] = field(default_factory=list)
    id_hashes: list[bytes] = field(default_factory=list)
    keys: list[bytes] = field(default_factory=list)

    def add(self, row: Row, passage: Passage) -> None:
        self.positions.append(row.position)
        self.passages.append(passage)
        self.extra_rows.append(row.extra)
        self.id_hashes.append(id_hash(passage.id))
        self.keys.append(passage_key(passage.id, passage.title, passage.text, row_key_texts(self.extra, row)))


def _batches(
    slice_: Slice, rows: Iterable[Row], extra: Mapping[str, ExtraType], unusable: QuarantineWriter
) -> Iterator[_Batch]:
    batch = _Batch(extra)
    for row in rows:
        if row.passage is None:
            unusable.add(QuarantinedRow(row.source, slice_.input_position(row.position), row.reason, row.raw))
            continue
        batch.add(row, row.passage)
        if len(batch.keys) == BATCH_ROWS:
            yield batch
            batch = _Batch(extra)
    if batch.keys:
        yield batch


def _new_passages(batch: _Batch, new_N: npt.NDArray[np.int64], schema: pa.Schema) -> pa.RecordBatch:
    passages = [batch.passages[row] for row in new_N] if len(new_N) < len(batch.keys) else batch.passages
    ids, titles, texts = zip(*passages, strict=True)
    hashes = [content_hash(title, text) for title, text in zip(titles, texts, strict=True)]
    keys, positions = ([column[row] for row in new_N] for column in (batch.keys, batch.positions))
    columns = {"id": ids, "title": titles, "text": texts, "key": keys, "content_hash": hashes, "position": positions}
    arrays = {name: pa.array(column, schema.field(name).type) for name, column in columns.items()}
    if batch.extra:
        arrays[EXTRA] = extra_array(batch.extra, [batch.extra_rows[row] for row in new_N])
    return pa.record_batch([arrays[name] for name in schema.names], schema=schema)
