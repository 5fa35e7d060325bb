"""What a run took, as tables for people."""

from collections.abc import Callable

from rich.console import Console
from rich.table import Table

from dpr.pipeline.estimate import HOUR_SECONDS, Cost
from dpr.pipeline.report import Report


def print_report(console: Console, report: Report) -> None:
    """A run's stages as a table, and below it what was chosen and what embedding waited for."""
    table = Table(title=f"run {report.run}: {report.seconds:,.1f} s", title_justify="left")
    for column in ("stage", "units", "done before", "rows", "seconds", "MB read", "MB written"):
        table.add_column(column, justify="left" if column == "stage" else "right")
    for stage in report.stages:
        counts = (stage.units, stage.done_before, stage.rows)
        megabytes = (stage.read_bytes / 1e6, stage.written_bytes / 1e6)
        table.add_row(
            stage.stage, *(f"{n:,}" for n in counts), f"{stage.seconds:,.1f}", *(f"{n:,.1f}" for n in megabytes)
        )
    console.print(table)
    estimate, outcome = report.costs.estimate, report.costs.outcome
    if estimate:
        console.print(cost_table("cost", {"estimate": estimate, "outcome": outcome}))
    elif outcome.gpu_hours:
        console.print(cost_table("cost", {"outcome": outcome}))
    for line in report.lines():
        console.print(line, highlight=False, markup=False, soft_wrap=True)


def cost_table(title: str, costs: dict[str, Cost]) -> Table:
    """Costs side by side."""
    table = Table(title=title, title_justify="left")
    for column in ("", *costs):
        table.add_column(column, justify="right" if column else "left")
    for name, of in _ROWS.items():
        table.add_row(name, *(of(cost) for cost in costs.values()))
    return table


def _duration(seconds: float | None) -> str:
    if seconds is None:
        return "not known"
    return f"{seconds:,.1f} s" if seconds < HOUR_SECONDS else f"{seconds / HOUR_SECONDS:,.2f} h"


_ROWS: dict[str, Callable[[Cost], str]] = {
    "passages to embed": lambda cost: f"{cost.passages:,}",
    "units": lambda cost: f"{cost.units:,}",
    "tokens": lambda cost: f"{cost.tokens:,}",
    "GB read": lambda cost: f"{cost.read_bytes / 1e9:,.3f}",
    "GB written": lambda cost: f"{cost.written_bytes / 1e9:,.3f}",
    "scan": lambda cost: _duration(cost.scan_seconds),
    "embed": lambda cost: _duration(cost.embed_seconds),
    "train, build, merge, gate": lambda cost: _duration(cost.index_seconds),
    "all": lambda cost: _duration(cost.seconds),
    "GPU-hours": lambda cost: f"{cost.gpu_hours:,.3f}",
    "dollars": lambda cost: "no price" if cost.dollars is None else f"{cost.dollars:,.2f}",
}
