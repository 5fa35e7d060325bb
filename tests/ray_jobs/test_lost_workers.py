"""A unit that kills every worker ends the stage, and the run, instead of being repeated forever."""

from functools import partial
from pathlib import Path

import pytest

from dpr.engine.stage import Place, Step, Work
from dpr.errors import UnitError
from dpr.recipe import Resources
from ray_jobs import ray_executor
from ray_jobs.ray_executor import RayExecutor
from tests.ray_jobs.local_ray import LocalRay
from tests.ray_jobs.steps import CHOSEN, Crash, CrashWhenMade, SayLost
from tests.ray_jobs.units import samples

RETRIES = 1
"""Fewer than the project's own, so that workers need not die six or eleven times before the stage ends."""


@pytest.fixture
def executor(local_ray: LocalRay, monkeypatch: pytest.MonkeyPatch) -> RayExecutor:
    local_ray.use(cpus=2)
    monkeypatch.setattr(ray_executor, "LOST_RETRIES", RETRIES)
    return RayExecutor(Resources())


@pytest.mark.parametrize(("on", "units"), [("task", 1), ("task", 5), ("actor", 5), ("encoder", 5)])
def test_a_unit_that_kills_its_workers_ends_the_stage(
    executor: RayExecutor, on: Place, units: int, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    marks = tmp_path / "marks"
    work = Work.of(Step("crash", partial(Crash, marks), on))
    with pytest.raises(UnitError, match=r"^stage embed: the workers of one unit died repeatedly \([^\n]*$") as ended:
        list(executor.run("embed", work, samples(5) if units > 1 else [CHOSEN]))
    # of a task, Ray says only that it was lost, so all that is missing is suspected, and not all of it named
    assert CHOSEN.record in str(ended.value) or (on == "task" and "…" in str(ended.value))
    assert 1 < marks.stat().st_size <= 1 + RETRIES
    assert capfd.readouterr() == ("", "")  # the error says it all, once


@pytest.mark.parametrize("on", ["actor", "encoder"])
def test_only_the_units_that_were_lost_too_often_are_named(executor: RayExecutor, on: Place) -> None:
    with pytest.raises(UnitError) as ended:
        list(executor.run("embed", Work.of(Step("say", SayLost, on)), samples(5)))
    assert f"died repeatedly ({CHOSEN.record});" in str(ended.value)


def test_an_actor_that_cannot_be_made_ends_the_stage(executor: RayExecutor, tmp_path: Path) -> None:
    marks = tmp_path / "marks"
    work = Work.of(Step("crash", partial(CrashWhenMade, marks), "actor"))
    with pytest.raises(UnitError, match=r"^stage embed: the workers of one unit died repeatedly"):
        list(executor.run("embed", work, samples(2)))
    assert marks.stat().st_size > 1
