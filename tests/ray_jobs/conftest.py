"""What tests of the commands share.

Every test of this folder is marked `ray` (tests/marks.py), unless it is marked `without_ray`.
"""

import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from ray_jobs import cli
from ray_jobs.guard import guarded
from tests.ray_jobs.local_ray import LocalRay

STAGES = "scan|diff|encoder|embed|copy|index|train|build|merge|invert|questions|truth|sentences|gate|search|modes"
OUR_LINE = re.compile(rf"({STAGES}) +\S.*")
"""A line of progress: it begins with a stage, or with what a stage has chosen."""
Dpr = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="package", autouse=True)
def modules_of_tests() -> Iterator[None]:
    """Let workers import what tests define: they do not import from the current folder."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))
        yield


@pytest.fixture(scope="package")
def local_ray() -> Iterator[LocalRay]:
    """The Ray of this process; a test states which one it needs."""
    made = LocalRay()
    yield made
    made.end()


@pytest.fixture
def no_ray(local_ray: LocalRay) -> None:
    """Have no Ray in this process: one starts within the test, or none may start."""
    local_ray.end()


@pytest.fixture
def dpr(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Dpr:
    """A function that runs a `dpr` command in this process and returns its exit code, stdout and stderr."""

    def call(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["dpr", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            sys.exit(guarded(cli.run))
        out, err = capsys.readouterr()
        return int(ended.value.code or 0), out, err

    return call
