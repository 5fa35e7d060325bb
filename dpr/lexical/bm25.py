"""BM25 over the live rows of several segments, as one index over all of them would score.

The variant is Lucene's, with its constants k1 and b:

    score(q, d) = sum over terms t of q: idf(t) * tf / (tf + k1 * (1 - b + b * length(d) / average length))
    idf(t)      = ln(1 + (N - df(t) + 0.5) / (df(t) + 0.5))

Segments hold counts alone. N and the average length are counted over live rows when the segments are opened, and df
for the terms of each question. So a night writes nothing for segments that stay, and scores are always those of the
live corpus.

*Pairs* are terms that stand side by side in a question. A passage that has them side by side too, in the same order,
scores for them by the same formula, with tf how often it does, and the mean of both terms' idf.

Shapes: Q questions, K hits, C candidates, N rows of a segment, T terms of a question, A pairs of them, P postings,
U distinct ids.
"""

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from dpr.errors import IntegrityError
from dpr.index.hardware import BULK_QUESTIONS, bulk_threads
from dpr.index.live_rows import Mask
from dpr.index.row_bits import Bits, RowBits
from dpr.index.row_ids import ROW_BITS
from dpr.index.truth import Ids, Scores, empty_topk
from dpr.lexical.analysis import Hashes, short_hashes
from dpr.lexical.postings import Postings

Floats = npt.NDArray[np.float32]
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
    first_id: int
    postings: Postings
    norm_N: Floats
    """1 - b + b * length / average length; infinite for dead rows, which so score 0."""
    has_dead: bool


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
            self._segments.append(_Segment(number << ROW_BITS, postings, norm_N, not live.all()))

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
        others_QC = np.empty((len(questions), 0), np.int64) if others_QC is None else others_QC
        scores_QK, ids_QK = empty_topk(len(questions), k)
        scores_QC = np.zeros(others_QC.shape, np.float32)
        pairs_QK, pairs_QC = np.zeros((len(questions), k), np.float32), np.zeros(others_QC.shape, np.float32)
        wanted_B = _ALL if rows is None else rows.bits_B
        reach_Q = np.zeros(len(questions), np.float32)
        k1 = max(MIN_K1, self._k1 if k1 is None else k1)

        def answer(question: int) -> None:
            best, others = (scores_QK[question], ids_QK[question]), (others_QC[question], scores_QC[question])
            idf_T = self._search(questions[question], k1, wanted_B, best, others)
            reach_Q[question] = idf_T.sum() / (1 + k1)
            if pairs:
                found = np.concatenate([ids_QK[question], others_QC[question]])
                scores = self._pair_scores(questions[question], idf_T, k1, found)
                pairs_QK[question], pairs_QC[question] = scores[:k], scores[k:]

        if len(questions) > BULK_QUESTIONS:
            with ThreadPoolExecutor(bulk_threads()) as pool:
                list(pool.map(answer, range(len(questions))))
        else:
            list(map(answer, range(len(questions))))
        terms_Q = [len(question) for question in questions]
        return Found(scores_QK, ids_QK, scores_QC, pairs_QK, pairs_QC, terms_Q, reach_Q)

    def _search(
        self, hashes: Hashes, k1: float, wanted_B: Bits, best: tuple[Floats, Ids], others: tuple[Ids, Floats]
    ) -> Floats:
        """Fill in the best for one question (scores_K, ids_K), and for the others (ids_C, scores_C) the scores.

        Return the idf of each of its terms (T,), repetitions included; 0 for one that no passage holds.
        """
        from dpr.lexical import kernels  # Numba takes half a second to import

        terms_T, places_T, repeats_T = np.unique(hashes, return_inverse=True, return_counts=True)
        frequencies_T = np.zeros(len(terms_T), np.int64)
        spans = []
        for segment in self._segments:
            postings = segment.postings
            spans_T2 = kernels.find_spans(postings.terms, postings.starts, terms_T)
            spans.append(spans_T2)
            if segment.has_dead:
                frequencies_T += kernels.count_living(segment.norm_N, postings.rows, spans_T2)
            else:
                frequencies_T += spans_T2[:, 1] - spans_T2[:, 0]
        idf_T = np.log1p((self.rows - frequencies_T + 0.5) / (frequencies_T + 0.5))
        weights_T = (repeats_T * idf_T).astype(np.float32)
        for segment, spans_T2 in zip(self._segments, spans, strict=True):
            postings = segment.postings
            scores_N = kernels.sum_scores(
                segment.norm_N, np.float32(k1), postings.rows, postings.counts, spans_T2, weights_T
            )
            kernels.keep_best(scores_N, segment.first_id, wanted_B, *best)
            kernels.pick_scores(scores_N, segment.first_id, *others)
        # a term that no passage holds weighs most, and says nothing about what the passages share with the question
        known_T: Floats = np.where(frequencies_T > 0, idf_T, 0).astype(np.float32)[places_T]
        return known_T

    def _pair_scores(self, hashes: Hashes, idf_T: Floats, k1: float, ids_C: Ids) -> Floats:
        """Return what some ids (C,) score for the pairs of a question."""
        from dpr.lexical import kernels

        known_A = (idf_T[:-1] > 0) & (idf_T[1:] > 0)
        short_T = short_hashes(hashes).astype(np.uint32)
        pairs_A, places_A = np.unique((short_T[:-1] << 16 | short_T[1:])[known_A], return_inverse=True)
        weights_A = np.zeros(len(pairs_A), np.float32)
        np.add.at(weights_A, places_A, ((idf_T[:-1] + idf_T[1:]) / 2)[known_A])
        ids_U, places_C = np.unique(ids_C, return_inverse=True)  # both sides may have found it
        scores_U = np.zeros(len(ids_U), np.float32)
        numbers = set((ids_U >> ROW_BITS).tolist())
        for segment in self._segments:
            postings = segment.postings
            if segment.first_id >> ROW_BITS not in numbers:
                continue
            if postings.order is None or postings.ends is None:
                raise IntegrityError("a lexical part does not hold the order of its terms; run again")
            texts = np.float32(k1), segment.norm_N, postings.order, postings.ends
            kernels.sum_pairs(*texts, pairs_A, weights_A, segment.first_id, ids_U, scores_U)
        return scores_U[places_C]
