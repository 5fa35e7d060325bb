"""`dpr plan`: an estimate before anything runs."""

from rich.console import Console

from dpr.pipeline.execute import Executor, LocalExecutor
from dpr.pipeline.forecast import Forecast, forecast
from dpr.pipeline.plan import Plan
from dpr.pipeline.run import Run
from dpr.recipe import load_recipe
from ray_jobs.connect import connected
from ray_jobs.progress import ConsoleProgress
from ray_jobs.report import cost_table
from ray_jobs.runtime import RayExecutor


def plan(recipe_path: str, *, local: bool = False) -> Forecast:
    """Estimate a run of the recipe on Ray or (`local`) in this process."""
    made = Plan.of(load_recipe(recipe_path))

    def asked(executor: Executor) -> Forecast:
        return forecast(Run(made, executor, ConsoleProgress(Console(stderr=True))))

    if local:
        return asked(LocalExecutor())
    with connected():
        return asked(RayExecutor(made.recipe.resources))


def print_forecast(console: Console, told: Forecast) -> None:
    """The estimate as a table, and what is behind it."""
    work, speeds, cluster = told.work, told.speeds, told.cluster
    console.print(cost_table(f"plan of run {told.run}", {"estimate": told.cost}))
    read = "all" if told.exact else f"{told.slices_read:,} of"
    gone = "" if told.dead is None else f", {told.dead:,} gone"
    lines = [
        f"corpus: {work.passages:,} passages, {told.new:,} new, {told.borrowed:,} of them with the text of another"
        f"{gone}, {told.duplicates:,} duplicate ids, {told.quarantined:,} unusable rows",
        f"on: {cluster.cpus} CPUs, {cluster.encoders} encoders with {cluster.gpus_per_encoder:g} GPUs each",
        f"measured: {speeds.scan_seconds:,.1f} s of a core to scan {work.corpus_bytes / 1e6:,.1f} MB "
        f"({read} {told.slices:,} slices read)",
    ]
    if work.embed:
        lines += [
            f"measured: tokenising {speeds.tokenise_tokens:,.0f} tokens/s a core, encoding {speeds.encode_tokens:,.0f} "
            f"tokens/s an encoder ({speeds.encode_tokens / speeds.limit_tokens:.2f} of the measured limit), "
            f"{work.tokens / work.embed:.1f} tokens a passage",
            f"encoder: {speeds.encoder}",
        ]
    for line in [*lines, *(f"assumed: {line}" for line in told.assumed)]:
        console.print(line, highlight=False, markup=False, soft_wrap=True)
