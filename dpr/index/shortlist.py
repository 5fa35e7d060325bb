"""Shortlists: the few vectors of a block that may be among the k nearest of a question, with their exact scores.

A float32 product gives an approximate score of every pair, with a proven bound of its error. A vector that cannot be
among the k nearest by this bound is left out. The rest, rarely much more than k a question, is summed in float64.

**The bound.** Questions are scaled to a length between 0.5 and 1 by powers of two, which changes no order. A float32
inner product of D numbers errs by at most D * 2**-24 times both lengths, in whatever order it is summed (Higham,
Accuracy and Stability of Numerical Algorithms, section 3.1). Vectors are float16, which is exact in float32.

`dpr.index.cpu_shortlist` and `dpr.index.torch_shortlist` make shortlists; here is what they share.

Shapes: Q questions, q questions of one slice, D dimensions, C vectors of the longest shortlist, P pairs.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, Self

import numpy as np
import numpy.typing as npt

from dpr.index.products import Double, Half, Rows, Single, exact_sum, round_sums, sum_error

MAX_SCORE = float(np.finfo(np.float32).max)
SMALLEST_SCORE = float(np.finfo(np.float32).smallest_subnormal)


@dataclass(frozen=True)
class Questions:
    """Questions as they are, and scaled."""

    exact_QD: Double
    unit_QD: Single
    """Divided by `2**exponents_Q`."""
    norms_Q: Double
    exponents_Q: npt.NDArray[np.int32]

    @classmethod
    def scaled(cls, questions_QD: Single) -> Self:
        """Scale questions of any length."""
        exact_QD = questions_QD.astype(np.float64)
        norms_Q = np.sqrt(np.einsum("qd,qd->q", exact_QD, exact_QD))
        exponents_Q = np.frexp(norms_Q)[1]
        return cls(exact_QD, np.ldexp(exact_QD, -exponents_Q[:, None]).astype(np.float32), norms_Q, exponents_Q)

    def thresholds(self, some: slice, floors_q: Single, kth_q: Single | None, error: float) -> Single:
        """Return the approximate scaled scores (q,) below which no vector can be among the k nearest.

        `floors_q` are the k-th best scores of earlier blocks, and `kth_q` the k-th best approximate scaled scores of
        this one, which err by `error` at most. None: it has fewer than k vectors.
        """
        exponents_q = self.exponents_Q[some]
        reached_q = np.ldexp(floors_q.astype(np.float64), -exponents_q)
        if kth_q is not None:
            reached_q = np.maximum(reached_q, kth_q.astype(np.float64) - error)
        # scores are rounded to float32: by a share of their size, near zero by a fixed step, and beyond it to infinity
        largest_q = np.ldexp(MAX_SCORE, -exponents_q)
        reached_q = np.where(reached_q < -largest_q, -np.inf, np.minimum(reached_q, largest_q))
        step_q = np.maximum(2.0**-22 * np.abs(reached_q), np.ldexp(SMALLEST_SCORE, -exponents_q))
        thresholds_q: Single = (reached_q - 2 * step_q - error).astype(np.float32)
        return thresholds_q


def product_error(dim: int, longest: float) -> float:
    """Return the bound of the error of float32 products of scaled questions with vectors of length `longest` or less.

    The second term covers products too small for float32.
    """
    return 1.01 * dim * 2.0**-24 * longest + dim * 2.0**-120 * (1 + longest)


@dataclass(frozen=True)
class Pairs:
    """The shortlists of some questions, one after another."""

    counts_q: Rows
    """Length of each shortlist."""
    rows_P: Rows
    """Rows of the block."""
    sums_P: Double
    """Inner products in float64, not rounded yet."""
    longest: float
    """Length of the longest vector of the block."""


Floors = Callable[[slice], Single]
"""Maps questions to their k-th best scores (q,) so far."""
Use = Callable[[slice, Pairs], None]
"""Takes the shortlists of some questions. Several threads may call it at once, with different questions."""
Vector = Callable[[int], Half | Single]
"""Maps a row of the block to its vector (D,)."""


class Shortlists(Protocol):
    """An object that makes shortlists, block by block."""

    max_rows: int
    """Rows that a block may have."""
    slice_questions: int
    """Questions of one slice; the last may have fewer."""

    def fill(self, first: int, vectors_nD: Half) -> None:
        """Put vectors into the block, from row `first` on."""

    def find(self, rows: int, floors: Floors, use: Use) -> None:
        """Make the shortlists of all questions with the first `rows` of the block, slice by slice."""

    def vector(self, row: int) -> Half | Single:
        """Return one vector (D,) of the block."""


def score(questions: Questions, some: slice, pairs: Pairs, vector: Vector) -> Single:
    """Return the scores (P,) of pairs of some questions with the block that `vector` reads."""
    errors_q = sum_error(questions.exact_QD.shape[1], questions.norms_Q[some] * pairs.longest)
    question_P = np.repeat(np.arange(some.start, some.stop), pairs.counts_q)

    def exact(pair: int) -> float:
        return exact_sum(questions.exact_QD[question_P[pair]], vector(int(pairs.rows_P[pair])))

    return round_sums(pairs.sums_P, np.repeat(errors_q, pairs.counts_q), exact)


def padded(pairs: Pairs, scores_P: Single) -> tuple[Single, Rows]:
    """Return scores (q, C) and rows (q, C) of shortlists; -inf and -1 behind the end of the shorter ones."""
    shape = len(pairs.counts_q), int(pairs.counts_q.max(initial=0))
    scores_qC, rows_qC = np.full(shape, -np.inf, np.float32), np.full(shape, -1, np.int64)
    filled_qC = np.arange(shape[1]) < pairs.counts_q[:, None]
    scores_qC[filled_qC], rows_qC[filled_qC] = scores_P, pairs.rows_P
    return scores_qC, rows_qC
