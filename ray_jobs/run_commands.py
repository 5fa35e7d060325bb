"""The commands of `dpr` that come before and with a run: init, check, doctor, plan, run."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from ray_jobs.cli_common import Fields, Json, RecipeArgument, Stop, show
from ray_jobs.output import console

if TYPE_CHECKING:
    from dpr.operations.check import Finding

app = typer.Typer()
Local = Annotated[bool, typer.Option("--local", help="Work in this process, without Ray.")]


@app.command()
def init(
    corpus: Annotated[str, typer.Argument(metavar="PATH", help="Corpus: file, folder, glob or URL.")],
    questions: Annotated[str | None, typer.Option(help="Questions with answers: JSONL, or a BEIR folder.")] = None,
    out: Annotated[Path, typer.Option(help="Recipe to write; the file must not exist.")] = Path("recipe.yaml"),
    json_: Json = False,
) -> None:
    """Inspect a corpus and write a commented recipe for it, which runs without changes."""
    from dpr.operations.first_recipe import first_recipe, write_recipe

    made = first_recipe(corpus, questions)
    write_recipe(made, out)

    def draw(console: Console) -> None:
        console.print(f"corpus: {made.look.describe()}", highlight=False)
        for warning in made.warnings():
            console.print(warning.removeprefix("# "), highlight=False)
        console.print(f"wrote {out}; look through it, then: dpr check {out}", highlight=False)

    show(json_, {"recipe": str(out), "corpus": made.look.describe()}, draw)


@app.command()
def check(recipe: RecipeArgument, json_: Json = False) -> None:
    """Find out in seconds whether a run would work: corpus, encoder, store, disk and memory, questions."""
    from dpr.operations.check import RecipeCheck
    from dpr.recipe_file import load_recipe

    _show_findings(RecipeCheck(load_recipe(recipe)).findings(), json_)


@app.command()
def doctor(
    store: Annotated[str | None, typer.Argument(metavar="[STORE]", help="Also look at this store.")] = None,
    json_: Json = False,
) -> None:
    """Examine every machine of the cluster (RAY_ADDRESS), or this one: versions, clocks, disks, GPUs, open ports."""
    from ray_jobs.doctor import examine

    _show_findings(examine(store), json_)


def _show_findings(findings: "Sequence[Finding]", json_: bool) -> None:
    """Show the finding on each topic, and end with the exit code of the first error."""
    rows: list[Fields] = [{"topic": f.topic, "ok": f.error is None, "found": f.sentence} for f in findings]

    def draw(console: Console) -> None:
        for finding in findings:
            verdict = "ok" if finding.error is None else "failed"
            console.print(f"{verdict:<7} {finding.topic:<9} {finding.sentence}", highlight=False)

    show(json_, rows, draw)
    failed = [finding.error for finding in findings if finding.error is not None]
    if failed:
        raise typer.Exit(failed[0].exit_code)


@app.command()
def run(
    recipe: RecipeArgument,
    json_: Json = False,
    local: Local = False,
    allow_shrink: Annotated[
        bool, typer.Option("--allow-shrink", help="Accept a corpus that lost more than limits.max_shrink.")
    ] = False,
    force: Annotated[str | None, typer.Option(metavar="REASON", help="Publish what the gate refuses.")] = None,
    until: Annotated[Stop | None, typer.Option(help="Stop there; publish nothing.")] = None,
) -> None:
    """Bring the collection of a recipe up to date: scan, embed, train, build, merge, gate, publish."""
    from dpr.run_recipe import Allowed
    from ray_jobs import jobs, tables

    allowed = Allowed(allow_shrink, force)
    if until is not None:
        line = jobs.run_until(recipe, until, allowed, local=local)
        show(json_, {"until": until, "made": line}, lambda console: console.print(line, highlight=False))
        return
    outcome = jobs.run_whole(recipe, allowed, local=local)
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
