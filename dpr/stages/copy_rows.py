"""The copy stage: rows whose vectors other segments hold already become segments without the encoder.

Shapes: N rows, D dimensions.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from dpr.engine.stage import Stage, Step, Work
from dpr.formats import MISSING
from dpr.formats.objects import open_parts
from dpr.formats.records import ObjectRef
from dpr.formats.segment import passage_schema, read_rows
from dpr.formats.segment_hashes import segment_hashes
from dpr.formats.stored_vectors import Vectors, vectors_of
from dpr.recipe import CorpusConfig
from dpr.run import Run
from dpr.stages.diff import Changes
from dpr.stages.embed import embed_context, segment_units, write_step
from dpr.stages.quarantine_limits import REFUSED_TEXT
from dpr.stages.scan import ScanResult
from dpr.stages.write_segment import MadeSegment, SegmentResult, SegmentUnit, Vectored, texts_of
from dpr.store import open_store


@dataclass(frozen=True)
class CopyUnit:
    """One segment to make from rows of others."""

    segment: SegmentUnit
    sources: tuple[tuple[int, ObjectRef | None], ...]
    """Segments by the numbers that the changes file names; None: every row of it was refused."""

    @property
    def record(self) -> str:
        return self.segment.record

    @property
    def rows(self) -> int:
        return self.segment.rows

    @property
    def read_bytes(self) -> int:
        return self.segment.read_bytes


def copy_rows(
    run: Run, changes: Changes, scans: Sequence[ScanResult], embedded: Sequence[MadeSegment]
) -> list[MadeSegment]:
    """Make the segments of rows that have vectors already, also vectors that this run has embedded."""
    segments = segment_units(run, changes, scans, "copy")
    if not segments:
        return []
    sources: dict[int, ObjectRef | None] = {entry.number: entry.object for entry in changes.sources}
    sources |= {made.unit.number: made.result.segment for made in embedded}
    units = [CopyUnit(segment, tuple(sources.items())) for segment in segments]
    context = embed_context(run)
    step: Step[CopyUnit, Vectored] = Step("copy", partial(CopyVectors, context.store_url, context.corpus))
    work = Work.of(step).then(write_step(context))
    results = run.results(Stage("copy", units, SegmentResult, work))
    return [MadeSegment(*pair) for pair in zip(segments, results, strict=True)]


class CopyVectors:
    """Finds a unit's vectors, and for moved rows also their texts, in the segments that hold them."""

    def __init__(self, store_url: str, corpus: CorpusConfig) -> None:
        self._store, self._corpus = open_store(store_url), corpus
        self._schema = passage_schema(corpus.columns.extra)

    def __call__(self, unit: CopyUnit) -> Vectored:
        rows, sources = unit.segment.changed_rows(self._store), dict(unit.sources)
        tables: list[pa.Table] = []
        vectors: list[Vectors] = []
        refused: dict[int, str] = {}
        for number in np.unique(rows["source"].to_numpy()).tolist():
            from_source = rows.filter(pc.equal(rows["source"], number))
            moved = from_source.filter(pc.equal(from_source["slice"], MISSING))
            borrowed = from_source.filter(pc.not_equal(from_source["slice"], MISSING))
            segment = sources[number]
            if moved.num_rows and segment is not None:
                table = self._rows_with(segment, "key", moved, self._schema.names)
                tables.append(table.select(self._schema.names).cast(self._schema))
                vectors.append(vectors_of(table))
            if borrowed.num_rows:
                first = sum(table.num_rows for table in tables)
                found_ND, missing = self._borrow(segment, borrowed)
                refused |= {first + row: REFUSED_TEXT for row in missing}
                tables.append(texts_of(self._store, self._corpus, unit.segment, borrowed, self._schema.names))
                vectors.append(found_ND)
        dim = max(array.shape[1] for array in vectors)
        vectors_ND = np.concatenate([v if v.shape[1] == dim else np.zeros((len(v), dim), np.float16) for v in vectors])
        return Vectored(unit.segment, rows, vectors_ND, refused, pa.concat_tables(tables))

    def _rows_with(self, segment: ObjectRef, column: str, wanted: pa.Table, columns: Sequence[str]) -> pa.Table:
        stored = segment_hashes(self._store, segment)[column]
        rows = np.flatnonzero(pc.is_in(stored, value_set=wanted[column].combine_chunks()))
        return read_rows(open_parts(self._store, segment), [*columns, "embedding"], rows)

    def _borrow(self, segment: ObjectRef | None, wanted: pa.Table) -> tuple[Vectors, list[int]]:
        """Return vectors (N, D) for `wanted` by content hash, and the numbers of the rows that have none (zeros)."""
        if segment is None:
            return np.zeros((wanted.num_rows, 1), np.float16), list(range(wanted.num_rows))
        table = self._rows_with(segment, "content_hash", wanted, ["content_hash"])
        where = pc.index_in(wanted["content_hash"], value_set=table["content_hash"].combine_chunks())
        missing = pc.is_null(where).to_numpy()
        source_ND = vectors_of(table)
        if not len(source_ND):
            source_ND = np.zeros((1, source_ND.shape[1]), np.float16)
        return source_ND[pc.fill_null(where, 0).to_numpy()], np.flatnonzero(missing).tolist()
