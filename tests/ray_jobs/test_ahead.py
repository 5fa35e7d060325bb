"""A stage that begins before its units are known, on a Ray that claims to have a GPU."""

import subprocess
import sys
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from dpr.engine.stage import Place, Step, Work
from dpr.errors import CorpusError, DprError
from dpr.recipe import Resources
from ray_jobs.ray_executor import RayExecutor
from tests.ray_jobs.local_ray import LocalRay
from tests.ray_jobs.steps import Load, Where
from tests.ray_jobs.units import Sample, samples


def load(folder: Path, on: Place = "encoder") -> Work[Sample, Sample]:
    """Return the work whose step is a `Load`."""
    return Work.of(Step("load", partial(Load, folder), on))


def wait_until_made(folder: Path) -> list[str]:
    """Return the names of the files that `Load` left."""
    for _ in range(600):
        if made := [path.name for path in folder.glob("made-*")]:
            return made
        time.sleep(0.1)
    raise AssertionError("nothing was made within a minute")


@pytest.fixture(autouse=True)
def ray_with_a_gpu(local_ray: LocalRay) -> None:
    local_ray.use(cpus=2, gpus=1)


@pytest.mark.parametrize("on", ["encoder", "asker"])
def test_encoders_are_made_before_there_is_a_unit_and_another_stage_runs_meanwhile(tmp_path: Path, on: Place) -> None:
    executor, work = RayExecutor(Resources()), load(tmp_path, on)
    executor.begin("embed", work)
    (made,) = wait_until_made(tmp_path)
    (tmp_path / "scan").mkdir()
    scanned = list(executor.run("scan", load(tmp_path / "scan", "task"), samples(3)))
    assert sorted(unit.number for unit in scanned) == [0, 1, 2]
    units = [Sample(number, "é", 0.5) for number in range(5)]
    done = list(executor.run("embed", work, units))
    assert {f"made-{unit.process}" for unit in done} == {made}
    assert sorted((replace(unit, process=0) for unit in done), key=lambda unit: unit.number) == units


def test_coders_run_in_the_processes_that_were_warmed(local_ray: LocalRay, tmp_path: Path) -> None:
    local_ray.use(cpus=8, gpus=1)  # Ray ends idle processes beyond one for each CPU
    executor = RayExecutor(Resources())
    executor.warm(partial(Load, tmp_path), 1)
    wait_until_made(tmp_path)
    list(executor.run("scan", Work.of(Step("where", Where)), samples(4)))  # leaves processes that were not warmed idle
    for number in range(20):  # a process that is not idle yet may not take the first one
        (done,) = executor.run("build", Work.of(Step("where", Where, "coder")), samples(1))
        if (tmp_path / f"made-{done.process}").exists():
            return
        time.sleep(0.1 * number)
    raise AssertionError("no coder ran in a process that was warmed")


def test_an_asker_that_was_not_begun_is_made_once_for_all_units(tmp_path: Path) -> None:
    done = list(RayExecutor(Resources()).run("sentences", load(tmp_path, "asker"), samples(4)))
    assert sorted(unit.number for unit in done) == [0, 1, 2, 3]
    assert [f"made-{process}" for process in {unit.process for unit in done}] == wait_until_made(tmp_path)


@pytest.mark.parametrize(
    ("on", "begun", "cancelled"),
    [
        ("encoder", False, False),
        ("encoder", False, True),
        ("encoder", True, False),
        ("encoder", True, True),
        ("asker", True, True),
    ],
)
def test_a_stage_without_units_gives_nothing_and_releases_the_gpu(
    tmp_path: Path, on: Place, *, begun: bool, cancelled: bool
) -> None:
    executor, work = RayExecutor(Resources()), load(tmp_path, on)
    if begun:
        executor.begin("embed", work)
        wait_until_made(tmp_path)
    if cancelled:
        executor.release("embed")
    else:
        assert list(executor.run("embed", work, [])) == []
    (alone,) = executor.run("train", load(tmp_path, "trainer"), samples(1))  # holds the only GPU
    assert alone.number == 0


@pytest.mark.parametrize("on", ["encoder", "asker"])
def test_what_goes_wrong_while_loading_is_raised_by_the_stage(tmp_path: Path, on: Place) -> None:
    (tmp_path / "refuse").touch()
    executor, work = RayExecutor(Resources()), load(tmp_path, on)
    executor.begin("embed", work)
    with pytest.raises(DprError, match="this is refused") as refused:
        list(executor.run("embed", work, samples(1)))
    assert type(refused.value) is CorpusError


BEGIN_AND_EXIT = """
import sys
from pathlib import Path
from dpr.recipe import Resources
from ray_jobs.connect import connected
from ray_jobs.ray_executor import RayExecutor
from tests.ray_jobs.test_ahead import load, wait_until_made

folder = Path(sys.argv[1])
with connected(cpus=2, gpus=1):
    RayExecutor(Resources()).begin("embed", load(folder))
    wait_until_made(folder)
    sys.exit(5)
"""


def test_a_begun_stage_that_is_never_run_does_not_keep_the_process(tmp_path: Path) -> None:
    command = [sys.executable, "-c", BEGIN_AND_EXIT, str(tmp_path)]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert (ended.returncode, ended.stdout, ended.stderr) == (5, "", "")
