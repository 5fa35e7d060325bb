"""What all job modules share: the command line, running on Ray, printing the outcome, exit codes."""

import argparse
import sys
from collections.abc import Callable
from typing import Any

from rich.console import Console
from rich.table import Table

from dpr.errors import DprError
from dpr.pipeline.plan import Plan
from dpr.pipeline.run import Run
from dpr.pipeline.whole import Outcome
from dpr.recipe import load_recipe
from dpr.store import open_store
from dpr.store.lease import Lease
from ray_jobs.connect import connected
from ray_jobs.progress import ConsoleProgress
from ray_jobs.runtime import RayExecutor


def main(description: str, work: Callable[[Run, bool], str]) -> None:
    """Entry point of a stage module: one line of outcome, exit code of the error if there is one.

    `work` is given `allow_shrink` too.
    """
    arguments = arguments_of(description)
    sys.exit(guarded(lambda: print(_with_lease(arguments.recipe, lambda run: work(run, arguments.allow_shrink)))))


def arguments_of(description: str) -> argparse.Namespace:
    """What every job takes: `recipe` and `allow_shrink`."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--recipe", required=True, help="recipe file (YAML)")
    parser.add_argument("--allow-shrink", action="store_true", help="accept a corpus that lost more than max_shrink")
    return parser.parse_args()


def _with_lease(recipe_path: str, work: Callable[[Run], str]) -> str:
    """Call `work` on Ray, holding the store's lease."""
    plan = Plan.of(load_recipe(recipe_path))
    owner = f"job on {plan.recipe.store}"
    with (
        ConsoleProgress(Console(stderr=True)) as progress,
        Lease.acquire(open_store(plan.recipe.store), owner),
        connected(),
    ):
        return work(Run(plan, RayExecutor(plan.recipe.resources), progress))


def guarded(work: Callable[[], object]) -> int:
    """Run `work`; a DprError becomes one line on stderr and its exit code."""
    try:
        work()
    except DprError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    return 0


def describe(outcome: Outcome) -> str:
    """One paragraph on how a run ended."""
    snapshot = outcome.snapshot
    if not outcome.published or outcome.report is None:
        return f"snapshot {snapshot.number} is up to date: nothing changed, nothing was embedded"
    found = outcome.report.found
    return (
        f"published snapshot {snapshot.number}: {snapshot.body.passages:,} passages "
        f"({found.new:,} new, {found.dead:,} gone), index {snapshot.body.codebook.factory}"
    )


def print_gate(console: Console, gate: dict[str, Any]) -> None:
    """The gate's figures as a table: accuracy by the index and by exact search, and recall."""
    if "accuracy_index" in gate:
        table = Table(title=f"gate: {gate['questions']:,} questions", title_justify="left")
        table.add_column("search")
        ranks = sorted(gate["accuracy_index"], key=int)
        for k in ranks:
            table.add_column(f"top-{k}", justify="right")
        for kind in ("exact", "index"):
            table.add_row(kind, *(f"{gate[f'accuracy_{kind}'][k]:.4f}" for k in ranks))
        console.print(table)
    asked = f"{gate.get('measured_on', gate['questions']):,} {gate['asked']}"
    if "settings" in gate:
        console.print(gate["settings"], highlight=False)
    console.print(f"recall@20 of the index against exact search: {gate['recall@20']:.4f} ({asked})", highlight=False)
