"""BM25 over the live rows of several segments, as one index over all of them would score.

The variant is Lucene's, with its constants k1 and b:

    score(q, d) = sum over terms t of q: idf(t) * tf / (tf + k1 * (1 - b + b * length(d) / average length))
    idf(t)      = ln(1 + (N - df(t) + 0.5) / (df(t) + 0.5))

Segments hold counts alone. N and the average length are counted over live rows when the segments are opened, and df
for the terms of each question. So a night writes nothing for segments that stay, and scores are always those of the
live corpus.

Shapes: Q questions, K hits, C candidates, N rows of a segment, T terms of a question, P postings.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from dpr.index.live_rows import Mask
from dpr.index.merging import ROW_BITS, ROW_MASK
from dpr.index.truth import Ids, Scores, best_of, empty_topk
from dpr.lexical.analysis import Hashes
from dpr.lexical.postings import Postings

Floats = npt.NDArray[np.float32]


class Found(NamedTuple):
    """What a search found."""

    scores_QK: Scores
    ids_QK: Ids
    """Best first; score -inf and id -1 where fewer rows hold a term of the question."""
    others_QC: Scores
    """Scores of the other ids that were asked for; 0 where they share no term with the question."""


@dataclass(frozen=True)
class _Segment:
    first_id: int
    postings: Postings
    norm_N: Floats
    """k1 * (1 - b + b * length / average length); infinite for dead rows, which so score 0."""
    has_dead: bool

    def spans(self, terms_T: Hashes) -> npt.NDArray[np.int64]:
        """Return where the postings of terms start and stop (T, 2); nowhere if the segment has none of a term."""
        places_T = np.searchsorted(self.postings.terms, terms_T)
        there_T = np.zeros(len(terms_T), np.bool_)
        inside_T = places_T < len(self.postings.terms)
        there_T[inside_T] = self.postings.terms[places_T[inside_T]] == terms_T[inside_T]
        starts_T = self.postings.starts[places_T * there_T].astype(np.int64)
        stops_T = self.postings.starts[(places_T + 1) * there_T].astype(np.int64)
        return np.stack([starts_T, np.where(there_T, stops_T, starts_T)], axis=1)

    def frequencies(self, spans_T2: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Return in how many live rows each term occurs (T,)."""
        if not self.has_dead:
            frequencies_T: npt.NDArray[np.int64] = spans_T2[:, 1] - spans_T2[:, 0]
            return frequencies_T
        rows = (self.postings.rows[start:stop] for start, stop in spans_T2.tolist())
        return np.array([np.count_nonzero(np.isfinite(self.norm_N[rows_p])) for rows_p in rows], np.int64)

    def scores(self, spans_T2: npt.NDArray[np.int64], weights_T: Floats) -> Floats:
        """Return the scores (N,) of all rows."""
        spans = spans_T2.tolist()
        rows_P = np.concatenate([self.postings.rows[start:stop] for start, stop in spans])
        counts_P = np.concatenate([self.postings.counts[start:stop] for start, stop in spans]).astype(np.float32)
        gains_P = self.norm_N[rows_P]
        gains_P += counts_P
        np.divide(counts_P, gains_P, out=gains_P)
        gains_P *= np.repeat(weights_T, spans_T2[:, 1] - spans_T2[:, 0])
        return np.bincount(rows_P, gains_P, len(self.norm_N)).astype(np.float32)


class Bm25:
    """Several segments, ready to be searched; they are mapped, and one number a row is held in memory."""

    def __init__(self, segments: Mapping[int, tuple[Postings, Mask]], k1: float, b: float) -> None:
        """Take the postings of each segment, and which rows of it live, by its number."""
        lengths = [postings.lengths[live].sum(dtype=np.int64) for postings, live in segments.values()]
        self.rows = int(sum(live.sum() for _, live in segments.values()))
        average = max(1, sum(map(int, lengths))) / max(1, self.rows)
        self._segments = []
        for number, (postings, live) in sorted(segments.items()):
            norm_N = (k1 * (1 - b + b * postings.lengths / average)).astype(np.float32)
            norm_N[~live] = np.inf
            self._segments.append(_Segment(number << ROW_BITS, postings, norm_N, not live.all()))

    def search(self, questions: Sequence[Hashes], k: int, others_QC: Ids | None = None) -> Found:
        """Return the k best rows for each question, and the scores of other ids, which may be -1.

        A question is the hashes of its terms; a term that it repeats counts as often. Equal scores rank by lower id.
        """
        others_QC = np.empty((len(questions), 0), np.int64) if others_QC is None else others_QC
        scores_QK, ids_QK = empty_topk(len(questions), k)
        scores_QC = np.zeros(others_QC.shape, np.float32)
        for question, hashes in enumerate(questions):
            scores_QK[question], ids_QK[question] = self._search(hashes, k, others_QC[question], scores_QC[question])
        return Found(scores_QK, ids_QK, scores_QC)

    def _search(self, hashes: Hashes, k: int, others_C: Ids, scores_C: Floats) -> tuple[Scores, Ids]:
        terms_T, repeats_T = np.unique(hashes, return_counts=True)
        spans = [segment.spans(terms_T) for segment in self._segments]
        frequencies_T = np.zeros(len(terms_T), np.int64)
        for segment, spans_T2 in zip(self._segments, spans, strict=True):
            frequencies_T += segment.frequencies(spans_T2)
        weights_T = repeats_T * np.log1p((self.rows - frequencies_T + 0.5) / (frequencies_T + 0.5))
        best = _Best(k)
        for segment, spans_T2 in zip(self._segments, spans, strict=True):
            if (spans_T2[:, 1] > spans_T2[:, 0]).any():
                scores_N = segment.scores(spans_T2, weights_T.astype(np.float32))
                best.add(segment.first_id, scores_N)
                here_C = (others_C & ~ROW_MASK) == segment.first_id
                scores_C[here_C] = scores_N[others_C[here_C] & ROW_MASK]
        return best.ranked()


class _Best:
    """Keeps the best rows of the segments so far, which come in ascending order."""

    def __init__(self, k: int) -> None:
        self._k = k
        self._floor = 0.0
        self._scores = np.empty(0, np.float32)
        self._ids = np.empty(0, np.int64)

    def add(self, first_id: int, scores_N: Floats) -> None:
        # a row as good as the worst of k that are kept has a higher id than they, so it is none of the best
        rows = np.flatnonzero(scores_N > self._floor)
        self._scores = np.concatenate([self._scores, scores_N[rows]])
        self._ids = np.concatenate([self._ids, first_id | rows])
        if len(self._scores) > self._k:
            self._floor = float(np.partition(self._scores, -self._k)[-self._k])
            kept = self._scores >= self._floor
            self._scores, self._ids = self._scores[kept], self._ids[kept]

    def ranked(self) -> tuple[Scores, Ids]:
        scores_1K, ids_1K = best_of(self._scores[None], self._ids[None], self._k)
        return scores_1K[0], ids_1K[0]
