"""BM25 over the live rows of several segments, as one index over all of them would score.

The variant is Lucene's, with its constants k1 and b:

    score(q, d) = sum over terms t of q: idf(t) * tf / (tf + k1 * (1 - b + b * length(d) / average length))
    idf(t)      = ln(1 + (N - df(t) + 0.5) / (df(t) + 0.5))

Segments hold counts alone. N and the average length are counted over live rows when the segments are opened, and df
for the terms of each question. So a night writes nothing for segments that stay, and scores are always those of the
live corpus.

*Pairs* are terms that stand side by side in a question. A passage that has them side by side too, in the same order,
scores for them by the same formula, with tf how often it does, and the mean of both terms' idf.

Shapes: Q questions, K hits, C candidates, N rows of a segment, T distinct terms of some questions.
"""

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from dpr.errors import IntegrityError
from dpr.index.hardware import BULK_QUESTIONS, bulk_threads
from dpr.index.live_rows import Mask
from dpr.index.row_bits import Bits, RowBits
from dpr.index.row_ids import ROW_BITS
from dpr.index.truth import Ids, Scores, empty_topk
from dpr.lexical.analysis import Hashes
from dpr.lexical.blocks import Floats, QuestionBlock, QuestionPairs, TermCounts, TermOrder, TermRows
from dpr.lexical.postings import Postings

BLOCK_QUESTIONS = 16
"""Questions that are answered together: a segment is called for all of them at once, and each of their terms is looked
up once. Many threads that called for single questions waited for Python's lock most of the time (docs/log.md)."""
MIN_K1 = 1e-30
"""In place of 0, since 0 times the infinite norm of a dead row is not a number."""
_ALL: Bits = np.empty(0, np.uint8)
"""Placeholder for the bits of all rows."""


class Found(NamedTuple):
    """The results of a search."""

    scores_QK: Scores
    ids_QK: Ids
    """Best first; score -inf and id -1 where fewer rows hold a term of the question."""
    others_QC: Scores
    """Scores of the other requested ids; 0 where they share no term with the question."""
    pairs_QK: Scores
    other_pairs_QC: Scores
    """What the same score for pairs, which is no part of their scores; 0 if it is not asked for."""
    terms_Q: list[int]
    """Terms of each question, repetitions included."""
    reach_Q: Floats
    """What a passage of average length scores for each question if it holds each of its terms once, except those that
    no passage holds."""


@dataclass(frozen=True)
class _Segment:
    rows: TermRows
    counts: TermCounts
    order: TermOrder | None


class Bm25:
    """Several segments, ready to be searched; they are mapped, and memory holds one number for each row."""

    def __init__(self, segments: Mapping[int, tuple[Postings, Mask]], k1: float, b: float) -> None:
        """Take the postings and the live rows of each segment, by its number."""
        lengths = [postings.lengths[live].sum(dtype=np.int64) for postings, live in segments.values()]
        self.rows = int(sum(live.sum() for _, live in segments.values()))
        average = max(1, sum(map(int, lengths))) / max(1, self.rows)
        self._k1 = k1
        self._segments = []
        for number, (postings, live) in sorted(segments.items()):
            norm_N = (1 - b + b * postings.lengths / average).astype(np.float32)
            norm_N[~live] = np.inf
            first_id, has_dead = number << ROW_BITS, not live.all()
            rows = TermRows(postings.terms, postings.starts, postings.rows, norm_N, has_dead)
            counts = TermCounts(postings.rows, postings.counts, norm_N, first_id)
            order = None
            if postings.order is not None and postings.ends is not None:
                order = TermOrder(postings.order, postings.ends, norm_N, first_id)
            self._segments.append(_Segment(rows, counts, order))

    def search(
        self,
        questions: Sequence[Hashes],
        k: int,
        others_QC: Ids | None = None,
        rows: RowBits | None = None,
        k1: float | None = None,
        *,
        pairs: bool = False,
    ) -> Found:
        """Return the k best rows for each question, and the scores of other ids, which may be -1.

        `rows`: no others are found; scores are those of a search for all. `k1`: another than that of the index.
        `pairs`: what is found is scored for pairs, too; all parts must hold the order of terms.
        A question is the hashes of its terms; a term that it repeats counts as often. Equal scores rank by lower id.
        Many questions are answered by several threads.
        """
        others_QC = np.empty((len(questions), 0), np.int64) if others_QC is None else np.ascontiguousarray(others_QC)
        scores_QK, ids_QK = empty_topk(len(questions), k)
        scores_QC = np.zeros(others_QC.shape, np.float32)
        pairs_QC = np.zeros((len(questions), k + others_QC.shape[1]), np.float32)
        wanted_B = _ALL if rows is None else rows.bits_B
        reach_Q = np.zeros(len(questions), np.float32)
        k1 = max(MIN_K1, self._k1 if k1 is None else k1)

        def answer(first: int) -> None:
            some = slice(first, first + BLOCK_QUESTIONS)
            block = QuestionBlock(questions[some])
            best, others = (scores_QK[some], ids_QK[some]), (others_QC[some], scores_QC[some])
            idf_T = self._search(block, k1, wanted_B, best, others)
            reach_Q[some] = block.sums(idf_T) / (1 + k1)
            if pairs:
                ids_QC = np.concatenate([ids_QK[some], others_QC[some]], axis=1)
                self._score_pairs(block.pairs(idf_T), k1, ids_QC, pairs_QC[some])

        blocks = range(0, len(questions), BLOCK_QUESTIONS)
        if len(questions) > BULK_QUESTIONS:
            with ThreadPoolExecutor(bulk_threads()) as pool:
                list(pool.map(answer, blocks))
        else:
            list(map(answer, blocks))
        terms_Q = [len(question) for question in questions]
        return Found(scores_QK, ids_QK, scores_QC, pairs_QC[:, :k], pairs_QC[:, k:], terms_Q, reach_Q)

    def _search(
        self, block: QuestionBlock, k1: float, wanted_B: Bits, best: tuple[Floats, Ids], others: tuple[Ids, Floats]
    ) -> Floats:
        """Fill in the best for each question (scores_QK, ids_QK), and for the others (ids_QC, scores_QC) the scores.

        Return the idf of each distinct term (T,); 0 for one that no passage holds.
        """
        from dpr.lexical import kernels  # Numba takes half a second to import

        frequencies_T = np.zeros(len(block.terms_T), np.int64)
        spans = [kernels.find_rows(segment.rows, block.terms_T, frequencies_T) for segment in self._segments]
        idf_T = np.log1p((self.rows - frequencies_T + 0.5) / (frequencies_T + 0.5))
        asked = block.distinct_terms(idf_T)
        for segment, spans_T2 in zip(self._segments, spans, strict=True):
            kernels.score_rows(segment.counts, np.float32(k1), asked, spans_T2, wanted_B, best, others)
        # a term that no passage holds weighs most, and says nothing about what the passages share with the question
        known_T: Floats = np.where(frequencies_T > 0, idf_T, 0).astype(np.float32)
        return known_T

    def _score_pairs(self, asked: QuestionPairs, k1: float, ids_QC: Ids, scores_QC: Floats) -> None:
        """Fill in what some ids score for the pairs of their questions."""
        from dpr.lexical import kernels

        numbers = set(np.unique(ids_QC >> ROW_BITS).tolist())
        for segment in self._segments:
            if segment.counts.first_id >> ROW_BITS not in numbers:
                continue
            if segment.order is None:
                raise IntegrityError("a lexical part does not hold the order of its terms; run again")
            kernels.score_pairs(segment.order, np.float32(k1), asked, ids_QC, scores_QC)
