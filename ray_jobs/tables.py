"""Print snapshots, runs and estimates for people, as tables and sentences."""

from collections import Counter

from rich.console import Console
from rich.table import Table

from dpr.formats import layout
from dpr.formats.gate_report import GateReport
from dpr.operations.estimate import Cost, cost_rows
from dpr.operations.forecast import Forecast
from dpr.operations.run_report import RunReport
from dpr.plurals import counted
from dpr.run_recipe import Outcome
from dpr.store.requests import READ_BYTES, REQUEST_CLASSES, WRITTEN_BYTES


def print_report(console: Console, report: RunReport) -> None:
    """Print a run's stages as a table, and below it the choices made and what embedding waited for."""
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
    print_requests(console, report)
    costs = {"outcome": report.cost}
    if report.estimate is not None:
        costs = {"estimate": report.estimate} | costs
    if report.cost.gpu_hours or report.estimate is not None:
        console.print(cost_table("cost", costs))
    for line in (*report.lines(), f"report: {layout.run_page(report.run)} of the store"):
        console.print(line, highlight=False)


def print_requests(console: Console, report: RunReport) -> None:
    """Print the requests of each stage to an object store as a table; nothing for a store in a folder."""
    counted = [(stage.stage, stage.requests) for stage in report.stages]
    counted.append(("outside of stages", report.other_requests))
    total: Counter[str] = Counter()
    for _, requests in counted:
        total.update(requests)
    if not total:
        return
    table = Table(title="requests to the store", title_justify="left")
    for column in ("stage", *REQUEST_CLASSES, "MB read", "MB written"):
        table.add_column(column, justify="left" if column == "stage" else "right")
    for name, requests in (*counted, ("all", total)):
        megabytes = (requests.get(column, 0) / 1e6 for column in (READ_BYTES, WRITTEN_BYTES))
        counts = (requests.get(column, 0) for column in REQUEST_CLASSES)
        table.add_row(name, *(f"{n:,}" for n in counts), *(f"{n:,.1f}" for n in megabytes))
    console.print(table)


def cost_table(title: str, costs: dict[str, Cost]) -> Table:
    """Draw costs side by side, a column each."""
    table = Table(title=title, title_justify="left")
    for column in ("", *costs):
        table.add_column(column, justify="right" if column else "left")
    columns = [cost_rows(cost) for cost in costs.values()]
    for name in columns[0]:
        table.add_row(name, *(column[name] for column in columns))
    return table


def describe(outcome: Outcome) -> str:
    """Return one sentence on the outcome of a run."""
    snapshot = outcome.snapshot
    if not outcome.published or outcome.report is None:
        return f"snapshot {snapshot.number} is up to date: nothing changed, nothing was embedded"
    found = outcome.report.found
    return (
        f"published snapshot {snapshot.number}: {counted(snapshot.body.passages, 'passage')} "
        f"({found.new:,} new, {found.dead:,} gone), index {snapshot.body.codebook.factory}"
    )


def print_outcome(console: Console, outcome: Outcome) -> None:
    """Print the outcome of a run, its stages, and the gate's figures."""
    console.print(describe(outcome), highlight=False)
    if outcome.report:
        print_report(console, outcome.report)
    print_gate(console, outcome.snapshot.body.gate)


def print_gate(console: Console, gate: GateReport) -> None:
    """Print the gate's figures: accuracy by the index and by exact search as a table, and recall."""
    if gate.accuracy_index:
        table = Table(title=f"gate: {counted(gate.questions, 'question')}", title_justify="left")
        table.add_column("search")
        ranks = sorted(gate.accuracy_index, key=int)
        for k in ranks:
            table.add_column(f"top-{k}", justify="right")
        for kind, accuracy in (("exact", gate.accuracy_exact), ("index", gate.accuracy_index)):
            table.add_row(kind, *(f"{accuracy[k]:.4f}" for k in ranks))
        console.print(table)
    console.print(gate.settings, highlight=False)
    console.print(
        f"recall of the index against exact search: {gate.recall:.4f} ({gate.measured_on:,} {gate.question_kind})",
        highlight=False,
    )
    if gate.fp8 is not None:
        console.print(gate.fp8.summary, highlight=False)
    if gate.modes is not None:
        console.print(gate.modes.choice, highlight=False)


def print_forecast(console: Console, forecast: Forecast) -> None:
    """Print an estimate as a table, and below it what it is based on."""
    work, speeds, cluster = forecast.work, forecast.speeds, forecast.cluster
    console.print(cost_table(f"plan of run {forecast.run}", {"estimate": forecast.cost}))
    read = "all" if forecast.exact else f"{forecast.slices_read:,} of"
    gone = "" if forecast.dead is None else f", {forecast.dead:,} gone"
    lines = [
        f"corpus: {counted(work.passages, 'passage')}, {forecast.new:,} new, {forecast.borrowed:,} of them with the "
        f"text of another{gone}, {counted(forecast.duplicates, 'duplicate id')}, "
        f"{counted(forecast.quarantined, 'unusable row')}",
        f"on: {cluster.cpus} CPUs, {cluster.encoders} encoders with {cluster.gpus_per_encoder:g} GPUs each",
        f"measured: {speeds.scan_seconds:,.1f} s of a core to scan {work.corpus_bytes / 1e6:,.1f} MB "
        f"({read} {forecast.slices:,} slices read)",
    ]
    if work.embed:
        lines += [
            f"measured: tokenising {speeds.tokenise_tokens:,.0f} tokens/s a core, encoding {speeds.encode_tokens:,.0f} "
            f"tokens/s an encoder, {work.tokens / work.embed:.1f} tokens a passage",
            f"encoder: {speeds.encoder}",
        ]
    if forecast.cut.texts:
        what = "new passages, drawn at random,"
        lines.append(f"long texts: {forecast.cut.describe(what, forecast.sampled)}")
    for line in [*lines, *(f"assumed: {line}" for line in forecast.assumed)]:
        console.print(line, highlight=False)
