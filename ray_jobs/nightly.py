"""Job: the whole nightly run. `python -m ray_jobs.nightly --recipe R` is what `ray job submit` runs."""

import sys

from rich.console import Console

from dpr.pipeline.execute import LocalExecutor
from dpr.pipeline.plan import Plan
from dpr.pipeline.whole import Outcome, finished_run, run_plan
from dpr.recipe import load_recipe
from ray_jobs import jobs
from ray_jobs.connect import connected
from ray_jobs.progress import ConsoleProgress
from ray_jobs.runtime import RayExecutor


def nightly(recipe_path: str, *, allow_shrink: bool = False, local: bool = False) -> Outcome:
    """Run a recipe from corpus to published snapshot, on Ray or (`local`) in this process.

    Ray is started only if there is work.
    """
    plan = Plan.of(load_recipe(recipe_path))
    if (finished := finished_run(plan)) is not None:
        return finished
    with ConsoleProgress(Console(stderr=True)) as progress:
        if local:
            return run_plan(plan, LocalExecutor(), progress, allow_shrink=allow_shrink)
        with connected():
            return run_plan(plan, RayExecutor(plan.recipe.resources), progress, allow_shrink=allow_shrink)


def main() -> None:
    """Command line of the job."""
    arguments = jobs.arguments_of("Run a recipe from corpus to published snapshot.")
    sys.exit(jobs.guarded(lambda: print(jobs.describe(nightly(arguments.recipe, allow_shrink=arguments.allow_shrink)))))


if __name__ == "__main__":
    main()
