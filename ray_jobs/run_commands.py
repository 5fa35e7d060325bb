"""The commands of `dpr` that work on a recipe: run, plan."""

from typing import Annotated

import typer

from ray_jobs.cli_common import Fields, Json, RecipeArgument, Stop, show
from ray_jobs.output import console

app = typer.Typer()
Local = Annotated[bool, typer.Option("--local", help="Work in this process, without Ray.")]


@app.command()
def run(
    recipe: RecipeArgument,
    json_: Json = False,
    local: Local = False,
    allow_shrink: Annotated[bool, typer.Option(help="Accept a corpus that lost more than limits.max_shrink.")] = False,
    until: Annotated[Stop | None, typer.Option(help="Stop there; publish nothing.")] = None,
) -> None:
    """Bring the collection of a recipe up to date: scan, embed, train, build, merge, gate, publish."""
    from ray_jobs import jobs, tables

    if until is not None:
        line = jobs.run_until(recipe, until, allow_shrink=allow_shrink, local=local)
        show(json_, {"until": until, "made": line}, lambda console: console.print(line, highlight=False))
        return
    outcome = jobs.run_whole(recipe, allow_shrink=allow_shrink, local=local)
    gate, report = outcome.snapshot.body.gate, outcome.report
    document: Fields = {"snapshot": outcome.snapshot.number, "published": outcome.published}
    document |= report.model_dump(mode="json") if report else {"gate": gate.model_dump(mode="json")}

    show(json_, document, lambda console: tables.print_outcome(console, outcome))


@app.command()
def plan(recipe: RecipeArgument, json_: Json = False, local: Local = False) -> None:
    """Estimate what a run would do and cost, without writing to the store."""
    from dpr.operations.forecast import forecast
    from dpr.run import Run
    from ray_jobs import jobs, tables
    from ray_jobs.console import ConsoleProgress

    made = jobs.plan_of(recipe)
    progress = ConsoleProgress(console(stderr=True))
    jobs.show_notes(made, progress)
    with jobs.executor_for(made, progress, local=local) as executor:
        estimated = forecast(Run(made, executor, progress))
    show(json_, estimated.model_dump(mode="json"), lambda console: tables.print_forecast(console, estimated))
