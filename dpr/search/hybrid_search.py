"""Hybrid search: the best by vectors and the best by words, ranked together.

Shapes: Q questions, D dimensions, C candidates of a side, U candidates of both.
"""

from collections.abc import Sequence
from functools import partial

import numpy as np

from dpr.formats import MISSING
from dpr.index.candidates import exact_scores
from dpr.index.truth import Ids, Scores
from dpr.lexical.fusion import Candidates, Floats, ranks_of
from dpr.search.best_windows import best_passages
from dpr.search.filtered_rows import FilteredRows
from dpr.search.lexical_search import LexicalSearch
from dpr.search.sharded_vectors import ShardedVectors
from dpr.search.vector_search import VectorSearch


class HybridSearch:
    """A snapshot's index of vectors and its index of words, over the same rows."""

    def __init__(self, vectors: VectorSearch | ShardedVectors, words: LexicalSearch) -> None:
        self.vectors, self.words = vectors, words

    def candidates(
        self,
        questions: Sequence[str],
        questions_QD: Scores,
        most: int,
        *,
        k1: float | None,
        pairs: bool,
        exact: bool = False,
        rows: FilteredRows | None = None,
    ) -> list[Candidates]:
        """Return the candidates of each question: the best `most` of each side, with their true scores on both.

        Windows of one passage are one candidate.

        `k1`: BM25's; None: that of the index. `pairs`: whether they are scored. `exact`: the best by vectors are found
        by brute force. `rows`: no others are candidates.
        """
        _, dense_QC = (self.vectors.exact if exact else self.vectors.top)(questions_QD, most, rows)
        bits = None if rows is None else rows.bits
        found = self.words.search(questions, most, dense_QC, rows=bits, k1=k1, pairs=pairs)
        ids_QU = _unions(dense_QC, found.ids_QK)
        scores_QU = exact_scores(questions_QD, ids_QU, self.vectors.segments.fetching(ids_QU))
        made = []
        for question, (ids_U, scores_U) in enumerate(zip(ids_QU, scores_QU, strict=True)):
            there_U = ids_U != MISSING
            ids_U = ids_U[there_U]
            by_words, by_vectors = found.ids_QK[question], dense_QC[question]
            bm25_U, pairs_U = np.zeros(len(ids_U)), np.zeros(len(ids_U))
            _put(bm25_U, ids_U, by_vectors, found.others_QC[question])
            _put(bm25_U, ids_U, by_words, found.scores_QK[question])
            _put(pairs_U, ids_U, by_vectors, found.other_pairs_QC[question])
            _put(pairs_U, ids_U, by_words, found.pairs_QK[question])
            dense_ranks_U, bm25_ranks_U = ranks_of(by_vectors, ids_U), ranks_of(by_words, ids_U)
            dense_U = scores_U[there_U].astype(np.float64)
            terms, reach = found.terms_Q[question], float(found.reach_Q[question])
            both = Candidates(ids_U, dense_U, dense_ranks_U, bm25_U, bm25_ranks_U, terms, reach, pairs_U)
            made.append(both.of_passages(self.vectors.passages(ids_U)) if self.vectors.windows else both)
        return made

    def by_words(self, questions: Sequence[str], k: int, rows: FilteredRows | None = None) -> tuple[Scores, Ids]:
        """Return the best k of each question by words alone: (scores_QK float32, ids_QK int64), -inf and -1 if fewer.

        Of each passage, the best window is there. `rows`: no others are found.
        """
        best = partial(self.words.best, rows=None if rows is None else rows.bits)
        if not self.vectors.windows:
            return best(questions, k)
        segments = self.vectors.segments
        there = segments.rows if rows is None else len(rows)
        return best_passages(best, segments.owners.of, np.array(questions, object), k, there)


def _unions(ids_QC: Ids, others_QC: Ids) -> Ids:
    """Return the distinct ids of each row of both, ascending, preceded by -1 to fill the rows."""
    ids_QU = np.sort(np.concatenate([ids_QC, others_QC], axis=1), axis=1)
    ids_QU[:, 1:][ids_QU[:, 1:] == ids_QU[:, :-1]] = MISSING
    ids_QU.sort(axis=1)
    return ids_QU


def _put(scores_U: Floats, ids_U: Ids, ids_C: Ids, scores_C: Scores) -> None:
    there_C = ids_C != MISSING
    scores_U[np.searchsorted(ids_U, ids_C[there_C])] = scores_C[there_C]
