"""Reading the passages of scanned slices again: from the scan's objects, or from the corpus itself.

A scan stores the passages that no segment held when it ran. A later run may need others of the same slice (after a
rollback, say, or once an earlier passage with the same id is gone): those are read from the corpus.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from dpr.corpus.reading import read_again
from dpr.corpus.rows import Passage, Row, Slice
from dpr.errors import CorpusError, MissingObjectError
from dpr.fingerprint import content_hash, passage_key
from dpr.formats.extra import EXTRA, extra_array, key_texts
from dpr.formats.objects import damage_explained, open_parts, open_whole
from dpr.formats.records import ObjectRef
from dpr.formats.segment import passage_schema, read_rows
from dpr.recipe import CorpusConfig, ExtraType
from dpr.store import Store

POSITION = pa.field("position", pa.int64(), nullable=False)
SCHEMA = passage_schema().append(POSITION)
"""Columns of the passages that a scan stores, ascending by position, where the recipe names no extra columns."""
HASHES = pa.schema([SCHEMA.field("key"), SCHEMA.field("content_hash")])
Positions = npt.NDArray[np.int64]


@dataclass(frozen=True)
class TextSource:
    """A slice, and where the passages that its scan stored are."""

    number: int
    """Of the slice, among those of the run."""
    slice: Slice
    passages: ObjectRef | None
    """None: the scan stored none."""


def scanned_schema(corpus: CorpusConfig) -> pa.Schema:
    """Return `SCHEMA` with the recipe's extra columns."""
    return passage_schema(corpus.columns.extra).append(POSITION)


def row_key_texts(extra: Mapping[str, ExtraType], row: Row) -> list[str]:
    """Return the part of a row's key that comes from its extra columns."""
    return key_texts(list(extra), row.extra) if extra else []


def passages_at(
    store: Store, corpus: CorpusConfig, source: TextSource, positions_N: Positions, columns: Sequence[str]
) -> pa.Table:
    """Return some columns of `scanned_schema` of the passages at ascending positions (N,) of a slice, in that order.

    If texts are wanted, the scan's object in a remote store is fetched whole, since texts are most of it, and several
    steps and units need them. Raises CorpusError if the corpus must be read and its file has changed since the run was
    planned.
    """
    scanned = scanned_schema(corpus)
    schema = pa.schema([scanned.field(name) for name in columns])
    stored, there_N = _stored(store, source, positions_N, schema)
    if there_N.all():
        return stored.cast(schema)
    reread = _from_corpus(corpus, source, positions_N[~there_N]).select(list(columns)).cast(schema)
    places_N = np.empty(len(positions_N), np.int64)
    places_N[there_N] = np.arange(stored.num_rows)
    places_N[~there_N] = stored.num_rows + np.arange(reread.num_rows)
    return pa.concat_tables([stored.cast(schema), reread]).take(pa.array(places_N))


def _stored(
    store: Store, source: TextSource, positions_N: Positions, schema: pa.Schema
) -> tuple[pa.Table, npt.NDArray[np.bool_]]:
    """Return the passages that the scan stored, and which of the positions (N,) those are."""
    columns = schema.names
    has_texts = "text" in columns
    try:
        file = _open_stored(store, source, has_texts=has_texts)
    except MissingObjectError:
        return schema.empty_table(), np.zeros(len(positions_N), np.bool_)
    # hashes lie beside the positions, so both are read at once
    wanted = ["position"] if has_texts else list(dict.fromkeys([*columns, "position"]))
    with damage_explained(file):
        found = pq.read_table(file, columns=wanted, page_checksum_verification=True)
    stored_M = found["position"].to_numpy()
    rows_N = np.searchsorted(stored_M, positions_N)
    there_N = rows_N < len(stored_M)
    there_N[there_N] = stored_M[rows_N[there_N]] == positions_N[there_N]
    if has_texts:
        return read_rows(file, columns, rows_N[there_N]), there_N
    return found.select(list(columns)).take(pa.array(rows_N[there_N])), there_N


def _open_stored(store: Store, source: TextSource, *, has_texts: bool) -> Path | BinaryIO:
    """Open what the scan stored. Raises MissingObjectError if it stored nothing, or garbage collection removed it."""
    if source.passages is None:
        raise MissingObjectError(f"the scan of {source.slice.path} stored no passages")
    return open_whole(store, source.passages) if has_texts else open_parts(store, source.passages)


def _from_corpus(corpus: CorpusConfig, source: TextSource, positions_N: Positions) -> pa.Table:
    rows = list(read_again(source.slice, corpus, set(positions_N.tolist())))
    found = [row.position for row in rows if row.passage is not None]
    if found != positions_N.tolist():
        raise CorpusError(
            f"corpus file {source.slice.path} gave {len(found)} of {len(positions_N)} passages that it held when it "
            "was scanned, though size and time are the same; write the file again, or set corpus.rescan to always, and "
            "run again"
        )
    return _table([(row, row.passage) for row in rows if row.passage is not None], corpus)


def _table(rows: list[tuple[Row, Passage]], corpus: CorpusConfig) -> pa.Table:
    extra, schema = corpus.columns.extra, scanned_schema(corpus)
    columns = {
        "id": [passage.id for _, passage in rows],
        "title": [passage.title for _, passage in rows],
        "text": [passage.text for _, passage in rows],
        "key": [passage_key(*passage, row_key_texts(extra, row)) for row, passage in rows],
        "content_hash": [content_hash(passage.title, passage.text) for _, passage in rows],
        "position": [row.position for row, _ in rows],
    }
    arrays = {name: pa.array(column, schema.field(name).type) for name, column in columns.items()}
    if extra:
        arrays[EXTRA] = extra_array(extra, [row.extra for row, _ in rows])
    return pa.table([arrays[name] for name in schema.names], schema=schema)
