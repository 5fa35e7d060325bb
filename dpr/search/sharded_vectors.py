"""Searching by vectors where other processes hold the index: each searches its part, and the best by true score stay.

If some of them do not answer, the answer is given without them, and names them. Texts, words and filters are here.

Shapes: Q questions, K hits, D dimensions.
"""

import weakref
from collections.abc import Sequence
from copy import copy
from typing import Protocol

import numpy as np

from dpr.errors import StoreError
from dpr.index.truth import Ids, Scores, best_of, merge_topk
from dpr.search.best_windows import first_of_passages
from dpr.search.filtered_rows import FilteredRows, RowFilters
from dpr.search.segment_set import SegmentSet
from dpr.search.shard_search import ShardAnswer, ShardQuestion


class Shards(Protocol):
    """The processes that hold the parts of an index, numbered from 0."""

    def ask(self, question: ShardQuestion) -> Sequence[ShardAnswer | None]:
        """Return the answer of each; None for one that has not answered within the deadline."""

    def prepare(self, question: ShardQuestion) -> None:
        """Let all find the rows of the filter of a question, however long that takes."""

    def hold(self, snapshot: int) -> None:
        """Let all open a snapshot, and keep it until `let_go`; returns when all have it.

        Raises StoreError if one cannot open it, or takes too long.
        """

    def let_go(self, snapshot: int) -> None:
        """Report that a holder of a snapshot asks no more questions of it."""


class _Hold:
    """Keeps a snapshot open in all processes while anybody has this object."""

    def __init__(self, shards: Shards, snapshot: int) -> None:
        shards.hold(snapshot)
        weakref.finalize(self, shards.let_go, snapshot).atexit = False


class ShardedVectors:
    """The vectors of a snapshot, searched by several processes. It has the methods of `VectorSearch`."""

    def __init__(self, segments: SegmentSet, shards: Shards, snapshot: int, *, windows: bool = False) -> None:
        """`windows`: rows may be windows of long texts, and an answer has the best one of each passage."""
        self.segments, self.windows, self.filters = segments, windows, RowFilters(segments, None)
        self._shards, self._snapshot = shards, snapshot
        self._hold = _Hold(shards, snapshot)
        self._missing: set[int] = set()

    def noting(self, missing: set[int]) -> "ShardedVectors":
        """Return the same vectors for one search, which adds to `missing` the processes that did not answer."""
        noting = copy(self)
        noting._missing = missing
        return noting

    def check_known(self, number: int) -> None:
        """Do nothing: each process has searched for what it knows when it opened its part."""

    def passages(self, ids_QK: Ids) -> Ids:
        """Return ids of the passages of rows (Q, K): the rows themselves, unless these may be windows."""
        return self.segments.owners.of(ids_QK) if self.windows else ids_QK

    def top(self, questions_QD: Scores, k: int, rows: FilteredRows | None = None) -> tuple[Scores, Ids]:
        """Return the best k that the parts of the index find, by true score: (scores_QK float32, ids_QK int64).

        `rows`: no others are found. Raises StoreError if no process answers.
        """
        return self._best(questions_QD, k, rows, exact=False)

    def exact(self, questions_QD: Scores, k: int, rows: FilteredRows | None = None) -> tuple[Scores, Ids]:
        """Return the best k of all live vectors, or of those of some rows, by brute force."""
        return self._best(questions_QD, k, rows, exact=True)

    def prepare(self, rows: FilteredRows) -> None:
        """Let all processes find the rows of a filter, so that no question waits for that."""
        none_0D = np.empty((0, self.segments.dim), np.float32)
        self._shards.prepare(ShardQuestion(self._snapshot, none_0D, 1, where=rows.where))

    def _best(self, questions_QD: Scores, k: int, rows: FilteredRows | None, *, exact: bool) -> tuple[Scores, Ids]:
        question = ShardQuestion(self._snapshot, questions_QD, k, exact, None if rows is None else rows.where)
        answers = self._shards.ask(question)
        self._missing.update(number for number, answer in enumerate(answers) if answer is None)
        found = [(answer.scores_QK, answer.ids_QK) for answer in answers if answer is not None]
        if not found:
            raise StoreError("none of the shards answered within the deadline; ask again in a moment")
        if not self.windows:
            return merge_topk(found, k)
        # windows of one passage may lie in several parts, each of which gives its best one
        scores_QC, ids_QC = (np.concatenate(each, axis=1) for each in zip(*found, strict=True))
        scores_QC, ids_QC = best_of(scores_QC, ids_QC, scores_QC.shape[1])
        return first_of_passages((scores_QC, ids_QC), self.passages(ids_QC), k)
