"""Intervals and p values against SciPy's, against exact tests, and by how often they hold.

Shapes: Q questions, M metrics.
"""

import numpy as np
import numpy.typing as npt
import pytest
from scipy.stats import binomtest, bootstrap, permutation_test

from dpr.evaluate import significance
from dpr.evaluate.significance import (
    MIN_QUESTIONS,
    Difference,
    mean_interval,
    mean_intervals,
    paired_difference,
    paired_differences,
    randomisation_p_value,
)

Values = npt.NDArray[np.float64]


def two_sides(questions: int, gain: float, seed: int = 1) -> tuple[Values, Values]:
    """Values between 0 and 1 of which most are equal on both sides, as those of two modes of search are."""
    rng = np.random.default_rng(seed)
    others_Q = rng.choice([0.0, 1 / 3, 0.5, 1.0], questions)
    moved_Q = rng.random(questions) < 0.3
    values_Q = np.where(moved_Q, np.clip(others_Q + rng.normal(gain, 0.4, questions), 0, 1), others_Q)
    return values_Q, others_Q


@pytest.mark.parametrize("questions", [MIN_QUESTIONS, 300, pytest.param(2_000, marks=pytest.mark.slow)])
def test_the_interval_of_a_mean_is_scipys(questions: int) -> None:
    values_Q, _ = two_sides(questions, 0.1)
    found = mean_interval(values_Q)
    theirs = bootstrap((values_Q,), np.mean, method="percentile", n_resamples=20_000, rng=2).confidence_interval
    assert found.mean == pytest.approx(values_Q.mean())
    spread = theirs.high - theirs.low
    assert found.low == pytest.approx(theirs.low, abs=0.04 * spread)
    assert found.high == pytest.approx(theirs.high, abs=0.04 * spread)


@pytest.mark.parametrize("gain", [-0.1, 0.0, 0.05])
def test_the_paired_interval_and_p_value_are_scipys(gain: float) -> None:
    values_Q, others_Q = two_sides(400, gain)
    found = paired_difference(values_Q, others_Q)
    differences_Q = values_Q - others_Q
    theirs = bootstrap((differences_Q,), np.mean, method="percentile", n_resamples=20_000, rng=2).confidence_interval
    spread = theirs.high - theirs.low
    assert (found.low, found.high) == pytest.approx((theirs.low, theirs.high), abs=0.04 * spread)
    test = permutation_test((differences_Q,), np.mean, permutation_type="samples", n_resamples=20_000, rng=3)
    assert found.p_value == pytest.approx(test.pvalue, abs=0.02)
    assert (found.won, found.lost) == ((values_Q > others_Q).sum(), (values_Q < others_Q).sum())
    assert found.won + found.lost + found.tied == 400


@pytest.mark.parametrize("seed", range(5))
def test_the_p_value_of_few_questions_is_exact(seed: int) -> None:
    values_Q, others_Q = two_sides(12, 0.2, seed)
    differences_Q = values_Q - others_Q
    exact = permutation_test((differences_Q,), np.mean, permutation_type="samples", n_resamples=np.inf)
    assert randomisation_p_value(differences_Q) == pytest.approx(exact.pvalue)


@pytest.mark.parametrize(("won", "lost"), [(8, 1), (40, 20), (300, 260), (5, 5)])
def test_the_p_value_of_right_or_wrong_is_that_of_the_sign_test(won: int, lost: int) -> None:
    differences_Q = np.concatenate([np.ones(won), -np.ones(lost), np.zeros(100)])
    assert randomisation_p_value(differences_Q) == pytest.approx(binomtest(won, won + lost).pvalue, abs=0.015)


def test_equal_lists_differ_by_nothing() -> None:
    values_Q, _ = two_sides(50, 0.1)
    assert paired_difference(values_Q, values_Q * 3 / 3) == Difference(0.0, 0.0, 0.0, 1.0, 0, 0, 50)


def test_few_questions_have_the_widest_interval() -> None:
    few_Q = np.ones(MIN_QUESTIONS - 1)
    assert (mean_interval(few_Q).low, mean_interval(few_Q).high) == (0.0, 1.0)
    difference = paired_difference(few_Q, np.zeros(len(few_Q)))
    assert (difference.mean, difference.low, difference.high) == (1.0, -1.0, 1.0)


def test_columns_are_as_each_alone_and_seeds_decide(monkeypatch: pytest.MonkeyPatch) -> None:
    values_QM = np.column_stack([two_sides(150, 0.1, seed)[0] for seed in range(3)])
    others_QM = np.column_stack([two_sides(150, 0.1, seed)[1] for seed in range(3)])
    together = paired_differences(values_QM, others_QM, seed=4)
    means = mean_intervals(values_QM, seed=4)
    monkeypatch.setattr(significance, "VALUES_AT_ONCE", 1_000)  # questions in memory at a time: no difference
    for column in range(3):
        alone = paired_difference(values_QM[:, column], others_QM[:, column], seed=4)
        assert (alone.low, alone.high) == pytest.approx((together[column].low, together[column].high))
        mean = mean_interval(values_QM[:, column], seed=4)
        assert (mean.low, mean.high) == pytest.approx((means[column].low, means[column].high))
    assert paired_differences(values_QM, others_QM, seed=4)[0].low != paired_differences(values_QM, others_QM)[0].low


@pytest.mark.slow
def test_the_interval_holds_the_true_difference_in_95_of_100_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(significance, "RESAMPLES", 1_000)
    rng = np.random.default_rng(3)
    held = false_alarms = 0
    for seed in range(500):
        both_Q = rng.random(200)
        found = paired_difference(both_Q + rng.normal(0.02, 0.1, 200), both_Q, seed)
        held += found.low <= 0.02 <= found.high
        false_alarms += paired_difference(both_Q + rng.normal(0, 0.1, 200), both_Q, seed).p_value < 0.05
    assert 460 <= held <= 487
    assert 12 <= false_alarms <= 40
