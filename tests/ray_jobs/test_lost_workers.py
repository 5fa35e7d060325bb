"""A unit that kills every worker ends the stage, and the run, instead of being begun again for ever."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from dpr.errors import UnitError
from dpr.engine.stage import Step, Unit
from dpr.recipe import Resources
from tests.ray_jobs.marks import ON_RAY

pytestmark = ON_RAY

DEADLY = "runs/1/3.json"


class Crash:
    """Ends its process at one unit, as a segfault does, and leaves a mark each time."""

    def __init__(self, marks: str) -> None:
        self._marks = marks

    def __call__(self, unit: Unit) -> Unit:
        if unit["record"] == DEADLY:
            crash(self._marks)
        return unit


class Stillborn:
    """Ends its process when it is made."""

    def __init__(self, marks: str) -> None:
        crash(marks)

    def __call__(self, unit: Unit) -> Unit:
        return unit


def crash(marks: str) -> None:
    with open(marks, "a", encoding="ascii") as file:
        file.write("x")
    os._exit(1)


@pytest.fixture(scope="module")
def executor() -> Iterator[Any]:
    from ray_jobs.connect import connected
    from ray_jobs.ray_executor import RayExecutor

    with connected(cpus=2):
        yield RayExecutor(Resources())


@pytest.mark.parametrize(("on", "units"), [("task", 1), ("task", 5), ("actor", 5), ("encoder", 5)])
def test_a_unit_that_kills_its_workers_ends_the_stage(executor: Any, on: Any, units: int, tmp_path: Path) -> None:
    from ray_jobs.ray_executor import LOST_RETRIES

    marks = tmp_path / "marks"
    records = [f"runs/1/{n}.json" for n in range(5)] if units > 1 else [DEADLY]
    with pytest.raises(
        UnitError, match=r"^stage embed: the workers of one unit died again and again \([^\n]*$"
    ) as ended:
        list(executor.run("embed", [Step(Crash, (str(marks),), on=on)], [{"record": record} for record in records]))
    assert DEADLY in str(ended.value) or "…" in str(ended.value)
    assert 1 < marks.stat().st_size <= 1 + LOST_RETRIES


def test_an_actor_that_cannot_be_made_ends_the_stage(executor: Any, tmp_path: Path) -> None:
    marks = tmp_path / "marks"
    with pytest.raises(UnitError, match=r"^stage embed: the workers of one unit died again and again"):
        list(executor.run("embed", [Step(Stillborn, (str(marks),), on="actor")], [{"record": "a"}, {"record": "b"}]))
    assert marks.stat().st_size > 1
