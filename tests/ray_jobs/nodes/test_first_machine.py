"""A stage goes on when the machine is lost on which the first driver of the cluster had started Ray Data's actors."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.slow, pytest.mark.cluster, pytest.mark.timeout(1200)]
ROOT = Path(__file__).resolve().parents[3]


def run_program(whose: str) -> str:
    command = [sys.executable, "-m", "tests.ray_jobs.nodes.first_machine", whose]
    surroundings = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    run = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=600, check=False, env=surroundings)
    return run.stdout


def test_the_first_machine_may_be_lost() -> None:
    assert "24 rows" in run_program("ours")


def test_with_the_actors_of_ray_data_it_may_not() -> None:
    """Once Ray Data's own survive, `ray_jobs.data_actors` can go."""
    out = run_program("theirs")
    assert "ActorUnschedulableError" in out
    assert "rows" not in out
