"""Inner products of questions with stored vectors: the same to the bit, in whatever order they are summed.

The score of a pair is its inner product, rounded to float64 and then to float32. The product of a float16 and a float32
number is exact in float64, so only the sum of D products is rounded. Any order of summing errs by less than
`sum_error`. Where both ends of this interval round to one float32, that is the score. For the other pairs, about one in
100,000, the sum is made again without any error. So a score does not depend on blocks, threads, libraries or devices.

Shapes: C candidates of one question, P pairs of a question and a vector, D dimensions.
"""

import math
from collections.abc import Callable

import numpy as np
import numpy.typing as npt

Scores = npt.NDArray[np.float32]
Half = npt.NDArray[np.float16]
Double = npt.NDArray[np.float64]

HALF_BITS = np.int32(~0x7000_1FFF)
"""Of a float32, those that the bits of a float16 move to."""
HALF_SCALE = 2.0**112
"""An exponent counts from -15 in float16, and from -127 in float32."""
HALF_MAGNITUDE = np.int16(0x7FFF)
"""Of a float16, all bits but the sign. Read as integers, they rank as the magnitudes do."""


def inner_products(question_D: Scores, vectors_CD: Half) -> Scores:
    """Return the scores (C,) of a question with finite vectors."""
    if not len(vectors_CD):
        return np.empty(0, np.float32)
    wide_D = question_D.astype(np.float64)
    sums_C = scaled_down(vectors_CD) @ (wide_D * HALF_SCALE)
    largest = float((vectors_CD.view(np.int16) & HALF_MAGNITUDE).max().view(np.float16))
    error = sum_error(len(wide_D), float(np.abs(wide_D).sum()) * largest)
    return round_sums(sums_C, error, lambda place: exact_sum(wide_D, vectors_CD[place]))


def scaled_down(half_ND: Half) -> Double:
    """Return finite vectors divided by `HALF_SCALE`, exactly; two to three times as fast as numpy converts them.

    Their bits are put where float32 has them: the sign stays on top, exponent and fraction go 13 places up.
    """
    bits_ND = half_ND.view(np.int16).astype(np.int32)
    bits_ND <<= 13
    bits_ND &= HALF_BITS
    return bits_ND.view(np.float32).astype(np.float64)


def sum_error(dim: int, magnitude: float) -> float:
    """Return a bound of the error of a float64 sum of `dim` products, whose magnitudes add up to `magnitude` at most.

    The proven bound is half of this (Higham, Accuracy and Stability of Numerical Algorithms, section 3.1).
    """
    return dim * 2.0**-52 * magnitude


def round_sums(sums_P: Double, errors_P: Double | float, exact: Callable[[int], float]) -> Scores:
    """Return the scores (P,) of pairs from float64 sums and the bounds of their errors.

    `exact` gives the error-free sum of the pair at a place; it is called where the bound leaves two scores possible.
    """
    with np.errstate(over="ignore"):  # a score beyond float32 is infinite
        scores_P, others_P = (sums_P - errors_P).astype(np.float32), (sums_P + errors_P).astype(np.float32)
        for place in np.flatnonzero(scores_P != others_P).tolist():
            scores_P[place] = np.float64(exact(place)).astype(np.float32)
    return scores_P


def exact_sum(question_D: Double, vector_D: npt.NDArray[np.floating]) -> float:  # type: ignore[type-arg]
    """Return an inner product that is rounded once, to float64."""
    return math.fsum((question_D * vector_D.astype(np.float64)).tolist())
