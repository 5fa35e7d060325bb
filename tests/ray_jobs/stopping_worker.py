"""A run on Ray, some workers of which stop in the middle of a unit, as if they had been sent SIGSTOP there.

python -m tests.ray_jobs.stopping_worker RECIPE LEASE_SECONDS FOLDER STEP=PATTERN…

Of each STEP, the first worker that is about to create an object whose name matches PATTERN leaves its process id in
`FOLDER/STEP/stopped` and stops. Once it was woken and has finished the unit, it leaves `FOLDER/STEP/finished`.
"""

import os
import re
import signal
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rich.console import Console

import dpr.store
from dpr.engine.stage import A, B, Step, Work
from dpr.recipe_file import load_recipe
from dpr.run import Plan
from dpr.run_recipe import run_plan
from dpr.store import LocalStore
from ray_jobs.connect import connected
from ray_jobs.console import ConsoleProgress
from ray_jobs.guard import guarded
from ray_jobs.ray_executor import RayExecutor


class _Stops(LocalStore):
    """Stops its process before the first matching object of all workers is created."""

    pattern: str
    folder: Path

    def put_if_absent(self, name: str, data: bytes) -> bool:
        self._stop_before(name)
        return super().put_if_absent(name, data)

    def put_file_if_absent(self, name: str, path: Path) -> bool:
        self._stop_before(name)
        return super().put_file_if_absent(name, path)

    def _stop_before(self, name: str) -> None:
        if re.search(self.pattern, name) and not (self.folder / "stopped").exists():
            draft = self.folder / f"draft-{os.getpid()}"
            draft.write_text(str(os.getpid()))
            os.link(draft, self.folder / "stopped")  # another worker that is as far fails here, and is repeated
            os.kill(os.getpid(), signal.SIGSTOP)


@dataclass(frozen=True)
class _MakeStopping:
    """Makes a step's operator, in a worker whose stores are `_Stops` from then on."""

    make: Callable[[], Callable[[Any], Any]]
    pattern: str
    folder: Path

    def __call__(self) -> Callable[[Any], Any]:
        _Stops.pattern, _Stops.folder = self.pattern, self.folder
        dpr.store.LocalStore = _Stops  # type: ignore[misc]  # in this process alone
        operator = self.make()

        def call(unit: Any) -> Any:
            result = operator(unit)
            stopped = self.folder / "stopped"
            if stopped.exists() and stopped.read_text() == str(os.getpid()):
                (self.folder / "finished").touch()
            return result

        return call


class StoppingExecutor(RayExecutor):
    """Runs the steps of some names in workers that stop."""

    patterns: Mapping[str, str]
    folder: Path

    def run(self, stage: str, work: Work[A, B], units: Sequence[A]) -> Iterator[B]:
        return super().run(stage, Work(tuple(map(self._stopping, work.steps))), units)

    def _stopping(self, step: Step[Any, Any]) -> Step[Any, Any]:
        if (pattern := self.patterns.get(step.name)) is None:
            return step
        return replace(step, make=_MakeStopping(step.make, pattern, self.folder / step.name))


def main(recipe: str, lease_seconds: str, folder: str, *patterns: str) -> int:
    """Run the recipe on the Ray that RAY_ADDRESS names; returns the exit code."""

    def run() -> None:
        plan = Plan.of(load_recipe(recipe))
        with ConsoleProgress(Console(stderr=True)) as progress, connected():
            executor = StoppingExecutor(plan.recipe.resources, progress)
            executor.patterns = dict(pattern.split("=", 1) for pattern in patterns)
            executor.folder = Path(folder)
            run_plan(plan, executor, progress, lease_seconds=float(lease_seconds))

    return guarded(run)


if __name__ == "__main__":
    # workers import the classes from here, not from __main__
    from tests.ray_jobs import stopping_worker  # noqa: PLW0406

    sys.exit(stopping_worker.main(*sys.argv[1:]))
