"""Run a recipe, whole or up to a stage: what `dpr run`, `dpr plan` and the job modules share."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Annotated

import typer

from dpr.engine.executor import Executor, LocalExecutor
from dpr.engine.run_state import Ending
from dpr.errors import RecipeError
from dpr.nightly import make_index, make_segments
from dpr.operations.make_report import Parts, end_attempt, reported_if_it_fails
from dpr.plurals import counted
from dpr.recipe import Recipe
from dpr.recipe_file import load_recipe
from dpr.run import Plan, Run
from dpr.run_recipe import Allowed, Outcome, finished_run, leased, run_plan
from dpr.stages.diff import diff
from dpr.stages.scan import scan
from ray_jobs.command_line import call
from ray_jobs.console import ConsoleProgress
from ray_jobs.output import console
from ray_jobs.tables import describe


def plan_of(recipe_path: str) -> Plan:
    """Read a recipe as `recipe_for_run` does, and plan it on this machine."""
    return Plan.of(recipe_for_run(recipe_path))


def recipe_for_run(recipe_path: str) -> Recipe:
    """Read a recipe. Its `resources.cache_gb` holds for this process and its workers."""
    recipe = load_recipe(recipe_path)
    if recipe.resources.cache_gb is not None:
        os.environ["DPR_CACHE_GB"] = str(recipe.resources.cache_gb)
    return recipe


def run_whole(recipe_path: str, allowed: Allowed, *, local: bool = False) -> Outcome:
    """Run a recipe from corpus to published snapshot, on Ray or (`local`) in this process."""
    return run_planned(plan_of(recipe_path), allowed, local=local)


def run_planned(plan: Plan, allowed: Allowed, *, local: bool = False) -> Outcome:
    """Run a plan as `run_whole` does. Ray is started only if there is work."""
    if (finished := finished_run(plan)) is not None:
        show_notes(plan, ConsoleProgress(console(stderr=True)))
        return finished
    with ConsoleProgress(console(stderr=True)) as progress, executor_for(plan, progress, local=local) as executor:
        if not local:
            _inspect_cluster(plan, progress)
        return run_plan(plan, executor, progress, allowed)


def run_until(recipe_path: str, stop: str, allowed: Allowed, *, local: bool = False) -> str:
    """Run a recipe up to `scan`, `embed` or `index`, without publishing; returns one line on the result.

    Raises RecipeError if publishing is to be forced.
    """
    if allowed.force is not None:
        raise RecipeError(
            f"--force has no effect on a run up to {stop}, which publishes nothing; leave it out, or run all stages"
        )
    plan = plan_of(recipe_path)
    owner, lease_seconds = f"run of {plan.recipe.store} up to {stop}", plan.recipe.limits.lease_seconds
    with (
        ConsoleProgress(console(stderr=True)) as progress,
        leased(plan, owner, lease_seconds) as lease,
        executor_for(plan, progress, local=local) as executor,
    ):
        if not local:
            _inspect_cluster(plan, progress)
        run = Run(plan, executor, progress, lease)
        with reported_if_it_fails(run, Parts()):
            line = _STOPS[stop](run, allowed.shrink)
            end_attempt(run, Parts(), Ending(kind="stopped early", exit_code=0, sentence=f"up to {stop}: {line}"))
        return line


def _inspect_cluster(plan: Plan, progress: ConsoleProgress) -> None:
    from ray_jobs.inspection import inspect_cluster  # Ray, as in `executor_for`

    inspect_cluster(plan, progress)


def show_notes(plan: Plan, progress: ConsoleProgress) -> None:
    """Show notes on the corpus files, where no scan does."""
    for note in plan.corpus.notes():
        progress.message("corpus", note)


@contextmanager
def executor_for(plan: Plan, progress: ConsoleProgress, *, local: bool) -> Iterator[Executor]:
    """Give the executor of a plan within the block: a connected Ray, or (`local`) this process.

    `progress` shows what Ray waits for.
    """
    if local:
        yield LocalExecutor()
        return
    from ray_jobs.connect import connected  # Ray takes seconds, and a night without changes does not need it
    from ray_jobs.ray_executor import RayExecutor

    with connected():
        yield RayExecutor(plan.recipe.resources, progress)


def _scan(run: Run, allow_shrink: bool) -> str:
    changes = diff(run, scan(run), allow_shrink=allow_shrink)
    found = f"{changes.new:,} new, {changes.embed_rows:,} to embed, {changes.dead:,} gone"
    return f"{counted(changes.rows, 'passage')}: {found}"


def _embed(run: Run, allow_shrink: bool) -> str:
    segments = make_segments(run, allow_shrink=allow_shrink).settled.segments
    passages = sum(entry.live_rows for entry in segments)
    return f"{counted(len(segments), 'segment')} with {counted(passages, 'live passage')}"


def _index(run: Run, allow_shrink: bool) -> str:
    indexed = make_index(run, make_segments(run, allow_shrink=allow_shrink))
    return f"index {indexed.index.index_id} ({indexed.codebook.factory}) with {counted(indexed.index.rows, 'passage')}"


_STOPS: dict[str, Callable[[Run, bool], str]] = {"scan": _scan, "embed": _embed, "index": _index}


def main(stop: str | None, description: str) -> None:
    """Run a job module: `--recipe R` in, one line of outcome out."""
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)

    @app.command(help=description)
    def job(
        recipe: Annotated[str, typer.Option("--recipe", help="Recipe file (YAML).")],
        allow_shrink: Annotated[
            bool, typer.Option("--allow-shrink", help="Accept a corpus that lost more than limits.max_shrink.")
        ] = False,
        force: Annotated[str | None, typer.Option(help="Why to publish a snapshot that the gate refuses.")] = None,
    ) -> None:
        allowed = Allowed(allow_shrink, force)
        print(describe(run_whole(recipe, allowed)) if stop is None else run_until(recipe, stop, allowed))

    call(app)
