"""The fault simulator: nights keep all invariants, a seed replays exactly, and bugs that are put back are found."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from simulation.scenario import Simulator
from simulation.workplace import workplace
from tests.simulation.bugs import BUGS

ROOT = Path(__file__).resolve().parents[2]
SEEDS = 30
"""`make simulate` runs many more."""
WITHIN = 100
"""Each bug is found within this number of seeds."""
FOUND_AT = {
    "overwritten": 23,
    "is not in the simulated store": 74,
    "which the gate of its recipe refuses": 5,
    "whose index the gate has not measured": 0,
    "without having looked at its lease": 0,
    "took the lease": 1,
}
"""Seeds that found a bug before: they are tried first."""


@pytest.fixture(scope="module")
def caches() -> Iterator[Path]:
    with workplace() as folder:
        yield folder


@pytest.fixture(scope="module")
def sound(caches: Path) -> Simulator:
    return Simulator(caches)


@pytest.mark.slow
def test_nights_keep_all_invariants(sound: Simulator) -> None:
    found = [sound.run(seed) for seed in range(SEEDS)]
    assert [(each.seed, each.violations) for each in found if each.violations] == []
    assert sum(each.faults for each in found) > SEEDS
    assert sum(each.attempts for each in found) > SEEDS
    assert sum(each.published for each in found) > SEEDS / 2


@pytest.mark.slow
def test_a_seed_replays_exactly_also_in_another_process(sound: Simulator) -> None:
    seed = 7
    found = sound.run(seed)
    assert sound.run(seed) == found
    command = [sys.executable, "-m", "simulation", "--seed", f"{seed}", "--trace"]
    replay = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True).stdout
    assert replay.splitlines()[1:-1] == list(found.trace)
    assert replay.splitlines()[-1].endswith(f"digest {found.digest}")


@pytest.mark.slow
@pytest.mark.parametrize("violation", BUGS)
def test_a_bug_that_is_put_back_is_found(sound: Simulator, violation: str) -> None:
    for seed in dict.fromkeys([FOUND_AT[violation], *range(WITHIN)]):
        sound.prepare(seed)
        with BUGS[violation]():
            found = sound.run(seed)
        if any(violation in text for text in found.violations):
            return
    pytest.fail(f"no seed below {WITHIN} finds: {violation}")
