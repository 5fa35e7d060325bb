"""The simulation of lost machines: equal to arithmetic where that is possible, and conserving units where it is not."""

import pytest

from benchmarks.spot import Stage, simulate


def test_without_losses_a_night_is_arithmetic() -> None:
    stages = [Stage("many", units=10, seconds=3.0, slots=2), Stage("one", units=1, seconds=5.0, slots=1)]
    found = simulate(stages, machines=2, losses_per_hour=0.0, replaced_after=60.0)
    assert found.stages == {"many": 9.0, "one": 5.0}  # ten units on four slots take three turns
    assert (found.seconds, found.repeated_seconds, found.lost_units) == (14.0, 0.0, 0)


@pytest.mark.parametrize("seed", range(5))
def test_one_machine_does_all_its_work_and_what_it_loses(seed: int) -> None:
    """With one slot nothing overlaps: the night is the work, what was repeated, and the time without a machine."""
    stage, replaced_after = Stage("units", units=200, seconds=10.0, slots=1), 30.0
    found = simulate([stage], machines=1, losses_per_hour=30.0, replaced_after=replaced_after, seed=seed)
    assert found.lost_units > 0
    assert found.seconds == pytest.approx(2000.0 + found.repeated_seconds + found.lost_units * replaced_after)


def test_losses_come_as_often_as_they_should() -> None:
    stage = Stage("units", units=20_000, seconds=1.0, slots=1)
    found = simulate([stage], machines=4, losses_per_hour=36.0, replaced_after=0.0)
    expected = found.seconds * 4 * 36.0 / 3600
    assert found.lost_units == pytest.approx(expected, rel=0.2)
    assert found.repeated_seconds == pytest.approx(found.lost_units / 2, rel=0.2)
