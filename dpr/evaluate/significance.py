"""Whether a difference between two lists of values, one value a question each, could be chance.

Questions are drawn at random from all that could be asked, so a mean over them is uncertain. An interval comes from the
bootstrap: the questions are drawn again with replacement, many times, and 95 of 100 such means lie in it (Efron and
Tibshirani 1993, percentile method). The p value comes from a randomisation test: if both sides were equally good, the
sign of each question's difference would be that of a coin (Smucker et al. 2007).

All values lie between 0 and 1, as those of all metrics here do. The same values and seed give the same results.

Shapes: Q questions, M metrics, R resamples, N values that are not zero.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

RESAMPLES = 10_000
MIN_QUESTIONS = 20
"""Fewer questions do not show how much values vary: the interval then covers all possible means."""
TAIL = 0.05
"""Error probability of a one-sided bound."""
TAILS = (2.5, 97.5)
"""Percentiles that bound a 95% interval."""
VALUES_AT_ONCE = 1 << 22
"""Numbers of all resamples that are in memory at a time."""
ROUNDING = 1e-12
"""Sums of the same values in another order differ by less than this, per value."""
Values = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Interval:
    """A mean over questions, and the 95% interval that holds the mean over all questions that could be asked."""

    mean: float
    low: float
    high: float


@dataclass(frozen=True)
class Difference:
    """The mean of values minus the mean of others of the same questions, and whether it could be chance."""

    mean: float
    low: float
    high: float
    """`low` and `high` bound the 95% interval."""
    p_value: float
    """The probability of a mean at least this far from zero, on either side, if both are equally good."""
    won: int
    """Questions whose value is larger than the other."""
    lost: int
    tied: int


def share_at_most(found: int, questions: int) -> float:
    """Return the upper 95% confidence bound of a share, if it was observed as `found` of `questions`; 1 without any.

    It is the largest share with which `found` or fewer occur in 5% of cases (Clopper and Pearson 1934), also if none
    was found.
    """
    low, high = found / max(1, questions), 1.0
    for _ in range(50):
        middle = (low + high) / 2
        low, high = (middle, high) if _at_most_probability(found, questions, middle) > TAIL else (low, middle)
    return high


def share_at_least(found: int, questions: int) -> float:
    """Return the lower 95% confidence bound of a share; see `share_at_most`."""
    return 1.0 - share_at_most(questions - found, questions)


def _at_most_probability(found: int, questions: int, share: float) -> float:
    """Return the probability of `found` or fewer of `questions` (binomial distribution), for a share above 0."""
    if found >= questions or share >= 1.0:
        return float(found >= questions)
    places = np.arange(found + 1)
    steps = np.log(questions - places[:-1]) - np.log(places[1:]) + math.log(share) - math.log1p(-share)
    logs = questions * math.log1p(-share) + np.concatenate([[0.0], np.cumsum(steps)])
    return float(np.exp(logs).sum())


def mean_interval(values_Q: Values, seed: int = 0) -> Interval:
    """Return the mean and its 95% interval."""
    return mean_intervals(values_Q[:, np.newaxis], seed)[0]


def mean_intervals(values_QM: Values, seed: int = 0) -> list[Interval]:
    """Return the mean of each column and its 95% interval; the resamples are the same for all columns."""
    return _intervals(values_QM, seed, lowest=0.0)


def paired_difference(values_Q: Values, others_Q: Values, seed: int = 0) -> Difference:
    """Return the mean difference of values to others of the same questions, and its uncertainty."""
    return paired_differences(values_Q[:, np.newaxis], others_Q[:, np.newaxis], seed)[0]


def paired_differences(values_QM: Values, others_QM: Values, seed: int = 0) -> list[Difference]:
    """Return the `paired_difference` of each column; the resamples are the same for all columns."""
    differences_QM = values_QM - others_QM
    # equal values that were calculated differently are a tie
    differences_QM[np.abs(differences_QM) <= ROUNDING] = 0.0
    found = []
    for differences_Q, interval in zip(differences_QM.T, _intervals(differences_QM, seed, lowest=-1.0), strict=True):
        won, lost = int(np.count_nonzero(differences_Q > 0)), int(np.count_nonzero(differences_Q < 0))
        p_value, tied = randomisation_p_value(differences_Q, seed), len(differences_Q) - won - lost
        found.append(Difference(interval.mean, interval.low, interval.high, p_value, won, lost, tied))
    return found


def randomisation_p_value(differences_Q: Values, seed: int = 0) -> float:
    """Return the two-sided p value of a paired randomisation test.

    It is exact where there are no more combinations of signs than `RESAMPLES`; otherwise, that many are drawn.
    """
    differences_N = differences_Q[differences_Q != 0]  # a tie has no sign
    as_far_from_zero = abs(differences_N.sum()) - ROUNDING * np.abs(differences_N).sum()
    if 2 ** len(differences_N) <= RESAMPLES:
        bits_RN = np.arange(2 ** len(differences_N))[:, np.newaxis] >> np.arange(len(differences_N)) & 1
        return float((_sizes_of_sums(bits_RN, differences_N) >= as_far_from_zero).mean())
    rng, found = np.random.default_rng(seed), 1  # the observed signs are one more combination
    for resamples in _blocks(len(differences_N)):
        drawn_RB = rng.integers(0, 256, (resamples, -(-len(differences_N) // 8)), np.uint8)
        drawn_RN = np.unpackbits(drawn_RB, axis=1, count=len(differences_N))
        found += int(np.count_nonzero(_sizes_of_sums(drawn_RN, differences_N) >= as_far_from_zero))
    return found / (RESAMPLES + 1)


def _sizes_of_sums(bits_RN: npt.NDArray[Any], differences_N: Values) -> Values:
    """Return the absolute sums (R,) of the differences, each with the sign that its bit gives."""
    sizes_R: Values = np.abs(2 * (bits_RN @ differences_N) - differences_N.sum())
    return sizes_R


def _intervals(values_QM: Values, seed: int, *, lowest: float) -> list[Interval]:
    """Return means and percentile intervals of columns whose values lie between `lowest` and 1."""
    means_M = values_QM.mean(axis=0)
    if len(values_QM) < MIN_QUESTIONS:
        return [Interval(mean, lowest, 1.0) for mean in means_M.tolist()]
    low_M, high_M = np.percentile(np.concatenate(list(_resampled_means(values_QM, seed))), TAILS, axis=0)
    return [Interval(*ends) for ends in zip(means_M.tolist(), low_M.tolist(), high_M.tolist(), strict=True)]


def _resampled_means(values_QM: Values, seed: int) -> Iterator[Values]:
    """Yield the means (R, M) of resamples of the questions, some at a time."""
    rng, questions = np.random.default_rng(seed), len(values_QM)
    for resamples in _blocks(questions):
        drawn_RQ = rng.integers(0, questions, (resamples, questions), np.int32)
        drawn_RQ += np.arange(resamples, dtype=np.int32)[:, np.newaxis] * questions
        # how often each question was drawn: a product of matrices then gives the means of all columns
        times_RQ = np.bincount(drawn_RQ.ravel(), minlength=drawn_RQ.size).reshape(drawn_RQ.shape)
        yield times_RQ @ values_QM / questions


def _blocks(width: int) -> Iterator[int]:
    """Yield how many resamples of this many values to hold in memory at a time, `RESAMPLES` in all."""
    most = max(1, VALUES_AT_ONCE // width)
    for first in range(0, RESAMPLES, most):
        yield min(most, RESAMPLES - first)
