"""The loops of BM25, compiled by Numba: at a million passages a quarter of the time that arrays of NumPy take.

Each is compiled when it is first called with some types, in less than a second, and lets other threads run meanwhile.

One call answers a block of questions in one segment: a call takes microseconds of Python, which other threads wait for.

Shapes: N rows of a segment, W terms of a segment, P postings, S terms of all rows of a segment, s of one row, Q
questions of a block, T distinct terms of all of them, A distinct pairs of each, K hits, C other ids, B bytes of bits of
index ids, V values.
"""

import numpy as np
from numba import njit
from numpy.typing import NDArray

from dpr.lexical.blocks import Floats, QuestionPairs, QuestionTerms, TermCounts, TermOrder, TermRows, Unsigned

Ids = NDArray[np.int64]


@njit(nogil=True)
def first_place(ascending_V: Unsigned, value: np.unsignedinteger) -> int:
    """Return the place of the first of ascending values that is no less than another; their number if all are less."""
    low, high = 0, len(ascending_V)
    while low < high:
        middle = (low + high) // 2
        if ascending_V[middle] < value:
            low = middle + 1
        else:
            high = middle
    return low


@njit(nogil=True)
def find_rows(index: TermRows, wanted_T: NDArray[np.uint64], frequencies_T: Ids) -> Ids:
    """Return where the postings of terms start and stop (T, 2); add the live rows among them to the frequencies."""
    spans_T2 = np.zeros((len(wanted_T), 2), np.int64)
    for term in range(len(wanted_T)):
        place = first_place(index.terms_W, wanted_T[term])
        if place == len(index.terms_W) or index.terms_W[place] != wanted_T[term]:
            continue
        start, stop = int(index.starts_W1[place]), int(index.starts_W1[place + 1])
        spans_T2[term, 0], spans_T2[term, 1] = start, stop
        if index.has_dead:
            for posting in range(start, stop):
                frequencies_T[term] += np.isfinite(index.norm_N[index.rows_P[posting]])
        else:
            frequencies_T[term] += stop - start
    return spans_T2


@njit(nogil=True)
def score_rows(
    counts: TermCounts,
    k1: np.float32,
    asked: QuestionTerms,
    spans_T2: Ids,
    wanted_B: NDArray[np.uint8],
    best: tuple[Floats, Ids],
    others: tuple[Ids, Floats],
) -> None:
    """Put the segment's best rows for each question among the `best`, and note the scores of the `others`.

    A row scores the sum of weight * count / (count + k1 * norm) over the question's terms.
    """
    scores_N = np.empty(len(counts.norm_N), np.float32)
    for question in range(len(asked.offsets_Q1) - 1):
        scores_N[:] = 0
        for place in range(asked.offsets_Q1[question], asked.offsets_Q1[question + 1]):
            term, weight = asked.places_R[place], asked.weights_R[place]
            for posting in range(spans_T2[term, 0], spans_T2[term, 1]):
                row, count = counts.rows_P[posting], np.float32(counts.counts_P[posting])
                scores_N[row] += weight * count / (count + k1 * counts.norm_N[row])
        keep_best(scores_N, counts.first_id, wanted_B, best[0][question], best[1][question])
        pick_scores(scores_N, counts.first_id, others[0][question], others[1][question])


@njit(nogil=True)
def is_set(bits_B: NDArray[np.uint8], id_: int) -> bool:
    """Return whether the bit of an index id is set; bits beyond the last are not."""
    return id_ >> 3 < len(bits_B) and bits_B[id_ >> 3] >> (id_ & 7) & 1 == 1


@njit(nogil=True)
def keep_best(
    scores_N: Floats,
    first_id: int,
    wanted_B: NDArray[np.uint8],
    scores_K: Floats,
    ids_K: Ids,
) -> None:
    """Put rows that score more than 0 among the best, which are sorted; of equal scores, those that came first stay.

    Only ids whose bit in `wanted_B` is set are put there; if it is empty, all are.
    """
    last = len(scores_K) - 1
    floor = max(np.float32(0), scores_K[last])
    for row in range(len(scores_N)):
        score = scores_N[row]
        if score > floor and (len(wanted_B) == 0 or is_set(wanted_B, first_id | row)):
            place = last
            while place > 0 and scores_K[place - 1] < score:
                scores_K[place], ids_K[place] = scores_K[place - 1], ids_K[place - 1]
                place -= 1
            scores_K[place], ids_K[place] = score, first_id | row
            floor = max(np.float32(0), scores_K[last])


@njit(nogil=True)
def pick_scores(scores_N: Floats, first_id: int, others_C: Ids, scores_C: Floats) -> None:
    """Copy the scores of those other ids that are rows of this segment."""
    for place in range(len(others_C)):
        row = others_C[place] - first_id
        if 0 <= row < len(scores_N):
            scores_C[place] = scores_N[row]


@njit(nogil=True)
def score_pairs(
    order: TermOrder,
    k1: np.float32,
    asked: QuestionPairs,
    ids_QC: Ids,
    scores_QC: Floats,
) -> None:
    """Add the scores for pairs to those ids that are rows of this segment.

    A row scores the sum of weight * count / (count + k1 * norm) over the question's pairs; the count is how often it
    has them side by side, in this order.
    """
    for question in range(len(ids_QC)):
        start, stop = asked.offsets_Q1[question], asked.offsets_Q1[question + 1]
        pairs_A, weights_A = asked.pairs_A[start:stop], asked.weights_A[start:stop]
        counts_A = np.empty(len(pairs_A), np.int64)
        for place in range(ids_QC.shape[1] if len(pairs_A) else 0):
            row = ids_QC[question, place] - order.first_id
            if 0 <= row < len(order.norm_N):
                first = int(order.ends_N[row - 1]) if row else 0
                count_pairs(order.order_S[first : int(order.ends_N[row])], pairs_A, counts_A)
                for pair in range(len(pairs_A)):
                    count = counts_A[pair]
                    if count:
                        scores_QC[question, place] += weights_A[pair] * count / (count + k1 * order.norm_N[row])


@njit(nogil=True)
def count_pairs(order_s: NDArray[np.uint16], pairs_A: NDArray[np.uint32], counts_A: Ids) -> None:
    """Count how often the terms of one row have each pair, which ascend, side by side."""
    counts_A[:] = 0
    for at in range(len(order_s) - 1):
        both = np.uint32(order_s[at]) << np.uint32(16) | np.uint32(order_s[at + 1])
        place = first_place(pairs_A, both)
        if place < len(pairs_A) and pairs_A[place] == both:
            counts_A[place] += 1
