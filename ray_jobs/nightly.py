"""Job: the whole nightly run. `python -m ray_jobs.nightly --recipe R` is what `ray job submit` runs."""

import argparse
import sys

from rich.console import Console

from dpr.pipeline.execute import LocalExecutor
from dpr.pipeline.run import Outcome, Run
from dpr.recipe import load_recipe
from ray_jobs import jobs
from ray_jobs.progress import ConsoleProgress
from ray_jobs.runtime import RayExecutor, connected


def nightly(recipe_path: str, *, allow_shrink: bool = False, local: bool = False) -> Outcome:
    """Run a recipe from corpus to published snapshot, on Ray or (`local`) in this process.

    Ray is started only if there is work.
    """
    recipe = load_recipe(recipe_path)
    with ConsoleProgress(Console(stderr=True)) as progress:
        run = Run(recipe, LocalExecutor(), progress)
        if local or run.up_to_date():
            return run.all_stages(allow_shrink=allow_shrink)
        with connected():
            run.executor = RayExecutor(recipe.resources)
            return run.all_stages(allow_shrink=allow_shrink)


def main() -> None:
    """Command line of the job."""
    parser = argparse.ArgumentParser(description="Run a recipe from corpus to published snapshot.")
    parser.add_argument("--recipe", required=True, help="recipe file (YAML)")
    parser.add_argument("--allow-shrink", action="store_true", help="accept a corpus that lost more than max_shrink")
    arguments = parser.parse_args()
    sys.exit(jobs.guarded(lambda: print(jobs.describe(nightly(arguments.recipe, allow_shrink=arguments.allow_shrink)))))


if __name__ == "__main__":
    main()
