"""Inner products of questions with stored vectors, in float64, and their rounding to scores.

The exact score of a pair is its inner product, rounded to float64 and then to float32. The product of a float16 and a
float32 number is exact in float64, so only the sum of D products is rounded. Any order of summing errs by less than
`sum_error`. Where both ends of this interval round to one float32, that is the score. For the other pairs, about one in
100,000, the sum is made again without any error. So exact search gives the same scores to the bit, whatever the blocks,
threads, libraries and devices. Re-scoring skips this check for speed; the last bit of one score in about ten million
may differ.

Shapes: q questions, N vectors, C of them for one question, P pairs of a question and a vector, D dimensions.
"""

import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

Half = npt.NDArray[np.float16]
Single = npt.NDArray[np.float32]
Double = npt.NDArray[np.float64]
Rows = npt.NDArray[np.int64]

CALL_QUESTIONS, CALL_ROWS = 4, 512
"""Rows that are gathered, converted and multiplied at a time. With fewer rows in a call, threads wait for the GIL."""


def slices(size: int, step: int) -> Iterator[slice]:
    """Yield slices of `step` that cover `size`."""
    return (slice(first, min(first + step, size)) for first in range(0, size, step))


def row_products(vectors_ND: Half | Single, rows_qC: Rows, questions_qD: Double) -> Double:
    """Return the inner products (q, C) float64 of each question with its own rows `rows_qC`; undefined for row -1.

    Each pair is summed alone, so its sum does not depend on the others.
    """
    sums_qC = np.zeros(rows_qC.shape)
    shape = CALL_QUESTIONS * min(CALL_ROWS, rows_qC.shape[1]), vectors_ND.shape[1]
    # reused buffers: the system clears new memory page by page, which takes longer than the products
    gathered_PD, wide_PD = np.empty(shape, vectors_ND.dtype), np.empty(shape)
    for some in slices(len(rows_qC), CALL_QUESTIONS):
        used = np.flatnonzero((rows_qC[some] >= 0).any(axis=0))
        for part in slices(len(used), CALL_ROWS):
            rows_qc = rows_qC[some, used[part]]
            gathered_qcD = gathered_PD[: rows_qc.size].reshape(*rows_qc.shape, -1)
            wide_qcD = wide_PD[: rows_qc.size].reshape(*rows_qc.shape, -1)
            vectors_ND.take(rows_qc, axis=0, out=gathered_qcD, mode="clip")
            np.copyto(wide_qcD, gathered_qcD)
            sums_qC[some, used[part]] = np.vecdot(wide_qcD, questions_qD[some, None])
    return sums_qC


def sum_error(dim: int, magnitudes_P: Double) -> Double:
    """Return bounds of the errors of float64 sums of `dim` products whose magnitudes add up to `magnitudes_P` at most.

    The proven bound is half of this (Higham, Accuracy and Stability of Numerical Algorithms, section 3.1).
    """
    return dim * 2.0**-52 * magnitudes_P


def round_sums(sums_P: Double, errors_P: Double, exact: Callable[[int], float]) -> Single:
    """Return the scores (P,) of pairs from float64 sums and the bounds of their errors.

    `exact` gives the error-free sum of the pair at a place; it is called where the bound leaves two scores possible.
    """
    with np.errstate(over="ignore"):  # a score beyond float32 is infinite
        scores_P, others_P = (sums_P - errors_P).astype(np.float32), (sums_P + errors_P).astype(np.float32)
        for place in np.flatnonzero(scores_P != others_P).tolist():
            scores_P[place] = np.float64(exact(place)).astype(np.float32)
    return scores_P


def exact_sum(question_D: Double, vector_D: npt.NDArray[np.floating[Any]]) -> float:
    """Return an inner product that is rounded once, to float64."""
    return math.fsum((question_D * vector_D.astype(np.float64)).tolist())
