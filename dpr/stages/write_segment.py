"""The last step of a segment's unit, embedded or copied: write the segment, its words, and the rows without a vector.

Shapes: N rows, D dimensions.
"""

import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from dpr.corpus.reading import read_again
from dpr.engine.room import Need, check_room
from dpr.errors import IntegrityError
from dpr.formats.changes import read_unit
from dpr.formats.cut_texts import CutTexts
from dpr.formats.manifest import SegmentEntry
from dpr.formats.objects import open_parts, put_object
from dpr.formats.quarantine import QuarantinedRow, write_quarantine
from dpr.formats.records import ObjectRef, Result
from dpr.formats.segment import check_segment, passage_columns, write_segment
from dpr.formats.stored_vectors import Vectors, stored_bytes
from dpr.lexical.postings import MEMORY_TIMES
from dpr.recipe import CorpusConfig, StoreAs
from dpr.recipe_index import LexicalConfig
from dpr.stages.passages import TextSource, passages_at
from dpr.stages.write_words import WriteWords, indexed_texts
from dpr.store import Store, open_store
from dpr.store.temporary import temporary_folder


@dataclass(frozen=True)
class SegmentUnit:
    """One segment to make, from a row group of the changes file."""

    record: str
    stem: str
    """Start of the names of its objects."""
    number: int
    segment_id: str
    rows: int
    read_bytes: int
    changes: ObjectRef
    group: int
    texts: tuple[TextSource, ...]
    """The slices that hold its texts."""

    def changed_rows(self, store: Store) -> pa.Table:
        """Return its rows of the changes file."""
        return read_unit(open_parts(store, self.changes), self.group)


@dataclass(frozen=True)
class Vectored:
    """A unit's vectors, on their way to the writer."""

    unit: SegmentUnit
    changed: pa.Table
    """The unit's rows of the changes file."""
    vectors_ND: Vectors
    refused: Mapping[int, str]
    """Row → why it has no vector."""
    passages: pa.Table | None = None
    """Columns of `passage_columns`; None: the writer reads the texts itself."""
    tokens: int = 0
    seconds: Mapping[str, float] = field(default_factory=dict)
    """Time by step: read, tokenise, encode, and `wait`: the encoder had no work."""
    encoder: str = ""
    """The encoder's choice of arithmetic and forward pass, and the reason."""
    cut: CutTexts = field(default_factory=CutTexts)
    """Tokens that the texts lost to the token limit."""

    @property
    def record(self) -> str:
        return self.unit.record

    def need(self, store_as: StoreAs, *, with_words: bool) -> Need:
        """Return the need of writing: vectors, which are not compressed, and words, about as large as the texts."""
        rows, dim = self.vectors_ND.shape
        vector_bytes = (rows - len(self.refused)) * stored_bytes(dim, store_as)
        word_bytes = self.unit.read_bytes if with_words else 0
        written_bytes, memory_bytes = vector_bytes + word_bytes, MEMORY_TIMES * word_bytes
        return Need(written_bytes, written_bytes, memory_bytes=memory_bytes, smaller="lower resources.segment_rows")


class SegmentResult(Result):
    """A segment that was made; `rows` are those that have a vector."""

    segment: ObjectRef | None
    """None: the encoder refused every row."""
    words: ObjectRef | None = None
    """Its lexical part; None: the recipe wants none."""
    refused_rows: int
    refused: ObjectRef | None
    """The refused rows as they are in the corpus, in the form of quarantine."""
    tokens: int
    seconds: dict[str, float]
    encoder: str
    cut: CutTexts = CutTexts()
    """Tokens that its passages lost to the token limit; unknown for copied segments."""


class WriteSegment:
    """Writes a unit's segment and its words, and the rows that the encoder refused, for the quarantine of every run."""

    def __init__(
        self, store_url: str, encoder_id: str, corpus: CorpusConfig, lexical: LexicalConfig, store_as: StoreAs
    ) -> None:
        self._store, self._encoder_id, self._corpus = open_store(store_url), encoder_id, corpus
        self._store_as = store_as
        self._write_words = WriteWords.of(self._store, lexical)

    def __call__(self, done: Vectored) -> SegmentResult:
        started, unit = time.perf_counter(), done.unit
        check_room(
            self._store,
            "embed" if done.passages is None else "copy",
            unit.record,
            done.need(self._store_as, with_words=self._write_words is not None),
        )
        passages = done.passages
        if passages is None:
            columns = passage_columns(self._corpus.columns.extra)
            passages = texts_of(self._store, self._corpus, unit, done.changed, columns)
        vectors_ND, segment, words, refused = done.vectors_ND, None, None, None
        with temporary_folder() as folder:
            if done.refused:
                rows = refused_rows(self._corpus, unit, done.changed, passages["key"], done.refused)
                write_quarantine(Path(folder, "refused.parquet"), rows)
                refused = put_object(self._store, f"{unit.stem}.refused", Path(folder, "refused.parquet"))
                good = np.setdiff1d(np.arange(len(vectors_ND)), list(done.refused))
                passages, vectors_ND = passages.take(pa.array(good)), vectors_ND[good]
            if len(vectors_ND):
                segment, words = self._write(Path(folder, "segment.parquet"), unit.stem, passages, vectors_ND)
        return SegmentResult(
            rows=len(vectors_ND),
            segment=segment,
            words=words,
            refused_rows=len(done.refused),
            refused=refused,
            tokens=done.tokens,
            seconds={**done.seconds, "write": time.perf_counter() - started},
            encoder=done.encoder,
            cut=done.cut,
        )

    def _write(
        self, path: Path, stem: str, passages: pa.Table, vectors_ND: Vectors
    ) -> tuple[ObjectRef, ObjectRef | None]:
        """Write a segment and its words. Words are sorted while vectors are written, which needs no Python."""
        with ThreadPoolExecutor(1, thread_name_prefix="words") as beside:
            words = self._write_words and beside.submit(self._write_words.postings, indexed_texts(passages))
            write_segment(path, passages, vectors_ND, self._encoder_id, self._store_as)
            check_segment(path, self._encoder_id, vectors_ND, len(vectors_ND), self._store_as)
            segment = put_object(self._store, stem, path)
            return segment, self._write_words(segment, words.result()) if self._write_words and words else None


def texts_of(store: Store, corpus: CorpusConfig, unit: SegmentUnit, rows: pa.Table, columns: Sequence[str]) -> pa.Table:
    """Return some columns of the passages of rows of the changes file (slice and position ascending)."""
    slices, positions = rows["slice"].to_numpy(), rows["position"].to_numpy()
    sources = {source.number: source for source in unit.texts}
    tables = [
        passages_at(store, corpus, sources[number], positions[slices == number], columns)
        for number in np.unique(slices).tolist()
    ]
    return pa.concat_tables(tables)


def refused_rows(
    corpus: CorpusConfig, unit: SegmentUnit, changed: pa.Table, keys: pa.ChunkedArray, reasons: Mapping[int, str]
) -> Iterator[QuarantinedRow]:
    """Yield the rows of `reasons` as they are in the corpus; `keys` are those of all rows of the unit."""
    numbers = sorted(reasons)
    places = pc.index_in(keys.take(pa.array(numbers)), value_set=changed["key"].combine_chunks())
    found = changed.take(places)
    slices, positions = found["slice"].to_numpy(), found["position"].to_numpy()
    for source in unit.texts:
        reason_at = {int(positions[i]): reasons[numbers[i]] for i in np.flatnonzero(slices == source.number)}
        if reason_at:
            for row in read_again(source.slice, corpus, reason_at.keys()):
                yield QuarantinedRow(
                    row.source, source.slice.input_position(row.position), reason_at[row.position], row.raw
                )


@dataclass(frozen=True)
class MadeSegment:
    """A planned segment and its result."""

    unit: SegmentUnit
    result: SegmentResult

    def check(self) -> None:
        """Raise IntegrityError unless the rows of the segment and those refused are the rows planned."""
        if self.result.rows + self.result.refused_rows != self.unit.rows:
            raise IntegrityError(
                f"segment {self.unit.segment_id} was planned with {self.unit.rows} rows; it has {self.result.rows}, "
                f"and {self.result.refused_rows} are in quarantine: nothing was published, and this is a bug; please "
                "report it"
            )

    def entries(self) -> list[SegmentEntry]:
        """Return the segment as part of a snapshot; none if the encoder refused every row."""
        unit, result = self.unit, self.result
        if result.segment is None:
            return []
        return [SegmentEntry(number=unit.number, segment_id=unit.segment_id, rows=result.rows, object=result.segment)]
