"""The passages that fp8 is judged by: those that answer the gate's questions, those nearest to them, and others.

Passages drawn at random alone would be too easy: in a large collection, hardly one of them comes near a question.

Shapes: N passages, D dimensions, Q questions, K neighbours.
"""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from dpr.evaluate.questions import QuestionSet
from dpr.formats import MISSING
from dpr.formats.deletions import DeletionSet, read_deletions
from dpr.formats.manifest import SegmentEntry
from dpr.formats.objects import open_parts
from dpr.formats.segment import iter_groups, read_rows
from dpr.formats.stored_vectors import Vectors
from dpr.index.row_ids import ROW_BITS, ROW_MASK
from dpr.index.truth import Ids
from dpr.search.vectors import SegmentVectors
from dpr.stages.question_vectors import draw_passages
from dpr.stages.train import IndexContext
from dpr.store import PARALLEL_READS, Store

PASSAGES = 20_000
"""Passages that are encoded again, at most: seconds of a GPU, and some minutes of a few cores."""
NEAR = 15_000
"""Neighbours of questions among them, at most: fifteen of each of the gate's 1,000."""
_LAST_PART = "#[^#]*$"
"""What a passage's id has behind that of its document."""


@dataclass(frozen=True)
class Sample:
    """Live passages, with the vectors that are stored."""

    ids: list[str]
    titles: list[str]
    texts: list[str]
    stored_ND: Vectors


def nearest(ids_QK: Ids, most: int) -> Ids:
    """Return at most so many rows (n,) from the neighbours of questions: the first of each, then the second, and so on.

    Pure.
    """
    by_rank = ids_QK.T.ravel()
    by_rank = by_rank[by_rank != MISSING]
    first_n: Ids = by_rank[np.sort(np.unique(by_rank, return_index=True)[1])]
    return first_n[:most]


def sampled_rows(store: Store, context: IndexContext, questions: QuestionSet | None, near_n: Ids) -> Ids:
    """Return the index ids (N,) of the sample, ascending: all live rows, if there are no more than `PASSAGES`."""
    deletions = read_deletions(store, context.deletions)
    found_n = np.empty(0, np.int64)
    if context.rows > PASSAGES:
        found_n = _answering(store, context, deletions, questions.passage_ids if questions else ())[:PASSAGES]
        found_n = np.union1d(found_n, near_n[: PASSAGES - len(found_n)])
    drawn = draw_passages(context, deletions, PASSAGES - len(found_n))
    return np.union1d(found_n, _index_ids(drawn))


def read_sample(store: Store, context: IndexContext, rows_N: Ids) -> Sample:
    """Read the passages with these index ids (N,), which ascend."""
    entries = {entry.number: entry for entry in context.segments}

    def read(number: int) -> tuple[pa.Table, Vectors]:
        rows_n = rows_N[rows_N >> ROW_BITS == number] & ROW_MASK
        ref = entries[number].object
        table = read_rows(open_parts(store, ref), ["id", "title", "text"], rows_n)
        return table, SegmentVectors.open(store, ref).rows(rows_n)

    with ThreadPoolExecutor(PARALLEL_READS) as pool:
        found = list(pool.map(read, np.unique(rows_N >> ROW_BITS).tolist()))
    table = pa.concat_tables([table for table, _ in found])
    ids, titles, texts = (table[name].to_pylist() for name in ("id", "title", "text"))
    return Sample(ids, titles, texts, np.concatenate([vectors_nD for _, vectors_nD in found]))


def _answering(store: Store, context: IndexContext, deletions: DeletionSet, answers: Sequence[str]) -> Ids:
    """Return the index ids of live passages that the answers name, themselves or by their document."""
    wanted = pa.array(answers, pa.string())

    def find(entry: SegmentEntry) -> Ids:
        there = [_named(table["id"], wanted) for table in iter_groups(open_parts(store, entry.object), ["id"])]
        rows = np.flatnonzero(np.concatenate([np.empty(0, np.bool_), *there]) & deletions.live_mask(entry))
        return (entry.number << ROW_BITS) | rows

    if not answers:
        return np.empty(0, np.int64)
    with ThreadPoolExecutor(PARALLEL_READS) as pool:
        return np.sort(np.concatenate(list(pool.map(find, context.segments))))


def _named(ids: pa.ChunkedArray, wanted: pa.Array) -> npt.NDArray[np.bool_]:
    """Return which ids are wanted, or are those of a part of a wanted document."""
    documents = pc.replace_substring_regex(ids, _LAST_PART, "")
    is_wanted: npt.NDArray[np.bool_] = pc.or_(pc.is_in(ids, wanted), pc.is_in(documents, wanted)).to_numpy()
    return is_wanted


def _index_ids(drawn: Sequence[tuple[SegmentEntry, int]]) -> Ids:
    return np.array([(entry.number << ROW_BITS) | row for entry, row in drawn], np.int64)
