"""The loops of BM25, compiled by Numba: at a million passages a quarter of the time that arrays of NumPy take.

Each is compiled when it is first called, in less than a second, and lets other threads run meanwhile.

Shapes: N rows of a segment, W terms of a segment, M terms of its rows, T terms of a question, P postings, K hits,
C other ids, A pairs of a question's terms, B bytes of bits of index ids.
"""

import numpy as np
from numba import njit
from numpy.typing import NDArray

Unsigned = NDArray[np.unsignedinteger]


@njit(nogil=True)
def find_spans(terms_W: NDArray[np.uint64], starts_W1: Unsigned, wanted_T: NDArray[np.uint64]) -> NDArray[np.int64]:
    """Return where the postings of terms start and stop (T, 2): nowhere for a term that the segment does not have."""
    spans_T2 = np.zeros((len(wanted_T), 2), np.int64)
    for term in range(len(wanted_T)):
        low, high = 0, len(terms_W)
        while low < high:
            middle = (low + high) // 2
            if terms_W[middle] < wanted_T[term]:
                low = middle + 1
            else:
                high = middle
        if low < len(terms_W) and terms_W[low] == wanted_T[term]:
            spans_T2[term, 0], spans_T2[term, 1] = starts_W1[low], starts_W1[low + 1]
    return spans_T2


@njit(nogil=True)
def count_living(norm_N: NDArray[np.float32], rows_P: Unsigned, spans_T2: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return how many postings of each term (T,) are of rows whose norm is finite."""
    counts_T = np.zeros(len(spans_T2), np.int64)
    for term in range(len(spans_T2)):
        for posting in range(spans_T2[term, 0], spans_T2[term, 1]):
            counts_T[term] += np.isfinite(norm_N[rows_P[posting]])
    return counts_T


@njit(nogil=True)
def sum_scores(
    norm_N: NDArray[np.float32],
    k1: np.float32,
    rows_P: Unsigned,
    counts_P: Unsigned,
    spans_T2: NDArray[np.int64],
    weights_T: NDArray[np.float32],
) -> NDArray[np.float32]:
    """Return the scores (N,) of all rows: the sum of weight * count / (count + k1 * norm) over the terms."""
    scores_N = np.zeros(len(norm_N), np.float32)
    for term in range(len(weights_T)):
        for posting in range(spans_T2[term, 0], spans_T2[term, 1]):
            row, count = rows_P[posting], np.float32(counts_P[posting])
            scores_N[row] += weights_T[term] * count / (count + k1 * norm_N[row])
    return scores_N


@njit(nogil=True)
def is_set(bits_B: NDArray[np.uint8], id_: int) -> bool:
    """Return whether the bit of an index id is set; bits beyond the last are not."""
    return id_ >> 3 < len(bits_B) and bits_B[id_ >> 3] >> (id_ & 7) & 1 == 1


@njit(nogil=True)
def keep_best(
    scores_N: NDArray[np.float32],
    first_id: int,
    wanted_B: NDArray[np.uint8],
    scores_K: NDArray[np.float32],
    ids_K: NDArray[np.int64],
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
def pick_scores(
    scores_N: NDArray[np.float32], first_id: int, others_C: NDArray[np.int64], scores_C: NDArray[np.float32]
) -> None:
    """Copy the scores of those other ids that are rows of this segment; its rows have the ids from `first_id` on."""
    for place in range(len(others_C)):
        row = others_C[place] - first_id
        if 0 <= row < len(scores_N):
            scores_C[place] = scores_N[row]


@njit(nogil=True)
def sum_pairs(
    k1: np.float32,
    norm_N: NDArray[np.float32],
    order_M: NDArray[np.uint16],
    ends_N: Unsigned,
    pairs_A: NDArray[np.uint32],
    weights_A: NDArray[np.float32],
    first_id: int,
    ids_C: NDArray[np.int64],
    scores_C: NDArray[np.float32],
) -> None:
    """Add weight * count / (count + k1 * norm) over the pairs to the scores of those ids that are rows of this segment.

    A pair is two terms by their short hashes, the first in the upper half of the number; pairs ascend, each once. Its
    count is how often the row has them side by side, in this order.
    """
    counts_A = np.zeros(len(pairs_A), np.int64)
    for place in range(len(ids_C)):
        row = ids_C[place] - first_id
        if row < 0 or row >= len(norm_N) or len(pairs_A) == 0:
            continue
        start, end = int(ends_N[row - 1]) if row else 0, int(ends_N[row])
        counts_A[:] = 0
        for at in range(start, end - 1):
            both = np.uint32(order_M[at]) << np.uint32(16) | np.uint32(order_M[at + 1])
            first, last = 0, len(pairs_A)
            while first < last:
                middle = (first + last) // 2
                if pairs_A[middle] < both:
                    first = middle + 1
                else:
                    last = middle
            if first < len(pairs_A) and pairs_A[first] == both:
                counts_A[first] += 1
        for pair in range(len(pairs_A)):
            if counts_A[pair]:
                scores_C[place] += weights_A[pair] * counts_A[pair] / (counts_A[pair] + k1 * norm_N[row])
