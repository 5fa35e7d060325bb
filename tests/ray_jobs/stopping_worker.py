"""A run on Ray, a worker of which stops in the middle of a unit, as if it had been sent SIGSTOP there.

python -m tests.ray_jobs.stopping_worker RECIPE LEASE_SECONDS FOLDER STEP PATTERN

The first worker of STEP that is about to create an object whose name matches PATTERN leaves its process id in
`FOLDER/stopped` and stops. Once it was woken and has finished the unit, it leaves `FOLDER/finished`.
"""

import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from dpr.engine.stage import A, B, Step, Work
from dpr.recipe_file import load_recipe
from dpr.run import Plan
from dpr.run_recipe import run_plan
from ray_jobs.connect import connected
from ray_jobs.console import ConsoleProgress
from ray_jobs.guard import guarded
from ray_jobs.output import console
from ray_jobs.ray_executor import RayExecutor
from tests.ray_jobs.stops import MakeStopping


class StoppingExecutor(RayExecutor):
    """Runs the step of a name in workers of which one stops."""

    step: str
    pattern: str
    folder: Path

    def run(self, stage: str, work: Work[A, B], units: Sequence[A]) -> Iterator[B]:
        return super().run(stage, Work(tuple(map(self._stopping, work.steps))), units)

    def _stopping(self, step: Step[Any, Any]) -> Step[Any, Any]:
        if step.name != self.step:
            return step
        return replace(step, make=MakeStopping(step.make, self.pattern, self.folder))


def main(recipe: str, lease_seconds: str, folder: str, step: str, pattern: str) -> int:
    """Run the recipe on the Ray that RAY_ADDRESS names; returns the exit code."""

    def run() -> None:
        plan = Plan.of(load_recipe(recipe))
        with ConsoleProgress(console(stderr=True)) as progress, connected():
            executor = StoppingExecutor(plan.recipe.resources, progress)
            executor.step, executor.pattern, executor.folder = step, pattern, Path(folder)
            run_plan(plan, executor, progress, lease_seconds=float(lease_seconds))

    return guarded(run)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
