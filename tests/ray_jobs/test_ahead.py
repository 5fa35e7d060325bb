"""A stage that is begun before its units are known, on a Ray that is said to have a GPU."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from dpr.errors import CorpusError, DprError
from dpr.engine.stage import Step, Unit
from dpr.recipe import Resources
from tests.ray_jobs.marks import ON_RAY

pytestmark = ON_RAY


class Load:
    """Leaves a note when it is made."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        if (folder / "refuse").exists():
            raise CorpusError("this is refused")
        (folder / f"made-{os.getpid()}").touch()

    def __call__(self, unit: Unit) -> Unit:
        return unit | {"process": os.getpid()}


def waited_for(folder: Path) -> list[str]:
    """Names of what was made."""
    for _ in range(600):
        if made := [path.name for path in folder.glob("made-*")]:
            return made
        time.sleep(0.1)
    raise AssertionError("nothing was made within a minute")


@pytest.fixture(scope="module", autouse=True)
def ray_with_a_gpu() -> Iterator[None]:
    from ray_jobs.connect import connected

    with connected(cpus=2, gpus=1):
        yield


def test_encoders_are_made_before_there_is_a_unit_and_another_stage_runs_meanwhile(tmp_path: Path) -> None:
    from ray_jobs.ray_executor import RayExecutor

    executor = RayExecutor(Resources())
    steps = [Step(Load, (tmp_path,), on="encoder")]
    executor.begin("embed", steps)
    (made,) = waited_for(tmp_path)
    (tmp_path / "scan").mkdir()
    scanned = list(executor.run("scan", [Step(Load, (tmp_path / "scan",))], [{"number": n} for n in range(3)]))
    assert sorted(unit["number"] for unit in scanned) == [0, 1, 2]
    done = list(executor.run("embed", steps, [{"number": n, "text": "é", "size": 0.5} for n in range(5)]))
    assert {f"made-{unit.pop('process')}" for unit in done} == {made}
    assert sorted(done, key=lambda unit: unit["number"]) == [{"number": n, "text": "é", "size": 0.5} for n in range(5)]


@pytest.mark.parametrize("begun", [False, True])
@pytest.mark.parametrize("left", [False, True])
def test_a_stage_without_units_gives_nothing_and_lets_the_gpu_go(tmp_path: Path, *, begun: bool, left: bool) -> None:
    from ray_jobs.ray_executor import RayExecutor

    executor = RayExecutor(Resources())
    steps = [Step(Load, (tmp_path,), on="encoder")]
    if begun:
        executor.begin("embed", steps)
        waited_for(tmp_path)
    if left:
        executor.leave("embed")
    else:
        assert list(executor.run("embed", steps, [])) == []
    (alone,) = executor.run("train", [Step(Load, (tmp_path,), on="trainer")], [{"number": 0}])  # holds the only GPU
    assert alone["number"] == 0


def test_what_goes_wrong_while_loading_is_raised_by_the_stage(tmp_path: Path) -> None:
    from ray_jobs.ray_executor import RayExecutor

    (tmp_path / "refuse").touch()
    executor = RayExecutor(Resources())
    steps = [Step(Load, (tmp_path,), on="encoder")]
    executor.begin("embed", steps)
    with pytest.raises(DprError, match="this is refused"):
        list(executor.run("embed", steps, [{"number": 0, "record": "runs/1/0.json"}]))


def test_a_begun_stage_that_is_never_run_does_not_keep_the_process(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from tests.ray_jobs.test_ahead import Load, waited_for\n"
        "from ray_jobs.connect import connected; from ray_jobs.ray_executor import RayExecutor\n"
        "from dpr.recipe import Resources; from dpr.engine.stage import Step\n"
        f"folder = Path({str(tmp_path)!r})\n"
        "with connected(cpus=2, gpus=1):\n"
        "    RayExecutor(Resources()).begin('embed', [Step(Load, (folder,), on='encoder')])\n"
        "    waited_for(folder)\n"
        "    sys.exit(5)\n"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)
    assert ended.returncode == 5
    assert "Traceback" not in ended.stderr + ended.stdout
