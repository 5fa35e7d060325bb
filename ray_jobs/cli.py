"""The `dpr` command."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from dpr import layout
from dpr.errors import DprError
from dpr.manifest import Snapshot
from dpr.snapshot import live_snapshot, numbers, open_snapshot, read_snapshot
from dpr.store import Store, open_store
from ray_jobs import maintain_cli
from ray_jobs.cli_common import Json, Model, RecipeArgument, SnapshotNumber, StoreArgument, show, summary, table

EXIT_CODES = """Exit codes: 0 done; 1 a defect; 2 recipe or command line; 3 corpus; 4 encoder; 5 store; 6 checksum
or count; 7 index; 8 another run is first; 9 the gate; 10 service; 11 a unit failed, start the run again."""

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Keep a searchable dense index of a large, changing text corpus true, and ask it questions.",
    epilog=EXIT_CODES,
)
app.add_typer(maintain_cli.app)


def main() -> None:
    """Entry point: an error of the project's own becomes one line on stderr and its exit code."""
    try:
        app()
    except DprError as error:
        Console(stderr=True, soft_wrap=True).print(f"error: {error}", highlight=False, markup=False)
        raise SystemExit(error.exit_code) from None


@app.command()
def run(
    recipe: RecipeArgument,
    json_: Json = False,
    local: Annotated[bool, typer.Option("--local", help="Run in this process, without Ray.")] = False,
    allow_shrink: Annotated[bool, typer.Option(help="Accept a corpus that lost more than limits.max_shrink.")] = False,
) -> None:
    """Bring the collection of a recipe up to date: scan, embed, train, build, merge, gate, publish."""
    from ray_jobs.jobs import describe, print_gate
    from ray_jobs.nightly import nightly
    from ray_jobs.report import print_report

    outcome = nightly(recipe, allow_shrink=allow_shrink, local=local)
    gate, report = outcome.snapshot.body.gate, outcome.report
    document = {"snapshot": outcome.snapshot.number, "published": outcome.published, "gate": gate}
    document |= report.model_dump(mode="json") if report else {}

    def draw(console: Console) -> None:
        console.print(describe(outcome), highlight=False)
        if report:
            print_report(console, report)
        print_gate(console, gate)

    show(json_, document, draw)


@app.command()
def plan(
    recipe: RecipeArgument,
    json_: Json = False,
    local: Annotated[bool, typer.Option("--local", help="Measure in this process, without Ray.")] = False,
) -> None:
    """What a run would do and cost, without writing to the store: passages, bytes, hours, GPU-hours, dollars."""
    from ray_jobs import plan as planning

    told = planning.plan(recipe, local=local)
    show(json_, told.model_dump(mode="json"), lambda console: planning.print_forecast(console, told))


@app.command()
def search(
    store: StoreArgument,
    question: Annotated[str, typer.Argument(help="What to ask.")],
    k: Annotated[int, typer.Option("-k", min=1, max=1000, help="Number of hits.")] = 5,
    exact: Annotated[bool, typer.Option("--exact", help="Search by brute force instead of the index.")] = False,
    snapshot: SnapshotNumber = None,
    model: Model = None,
    json_: Json = False,
) -> None:
    """Ask a question, without a service."""
    from dpr.retrieve import Retriever

    with Retriever.open(open_store(store), snapshot, model) as retriever:
        answer = retriever.search([question], k, exact=exact)
    hits = [vars(hit) for hit in answer.hits[0]]

    def draw(console: Console) -> None:
        for hit in answer.hits[0]:
            console.print(f"[bold]{hit.rank}[/]  {hit.score:.3f}  ", end="")
            console.print(f"{hit.title}  ({hit.id})", markup=False, highlight=False, style="cyan")
            console.print(f"   {hit.text}\n", markup=False, highlight=False)

    show(json_, {"snapshot": retriever.number, "encoder_id": retriever.body.encoder_id, "hits": hits}, draw)


@app.command()
def serve(
    store: StoreArgument,
    host: Annotated[str, typer.Option(help="Address to bind to.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port to bind to.")] = 8000,
    replicas: Annotated[int, typer.Option(min=1, help="Processes that each hold encoder and index.")] = 1,
    model: Model = None,
) -> None:
    """Serve the live snapshot over HTTP until interrupted."""
    from dpr.recipe import ServeConfig
    from ray_jobs.serve.run import serve_store, wait_for_interrupt

    with serve_store(store, ServeConfig(host=host, port=port, replicas=replicas), model) as url:
        Console(soft_wrap=True).print(f"serving {store} at {url} (API: {url}/docs); stop with Ctrl-C", highlight=False)
        wait_for_interrupt()


@app.command()
def status(store: StoreArgument, json_: Json = False) -> None:
    """What a store holds: its live snapshot, encoder, index and the gate's figures."""
    opened = open_store(store)
    snapshot = live_snapshot(opened)
    document = summary(snapshot) | {"snapshots": len(numbers(opened)), "gate": snapshot.body.gate}

    def draw(console: Console) -> None:
        drawn = Table(show_header=False, title=opened.url, title_justify="left")
        for field, value in document.items():
            drawn.add_row(field, json.dumps(value) if isinstance(value, dict) else f"{value}")
        console.print(drawn)

    show(json_, document, draw)


@app.command()
def inspect(store: StoreArgument, snapshot: SnapshotNumber = None, json_: Json = False) -> None:
    """Segments, parts, snapshots and the verification report of the index as tables."""
    from dpr.pipeline.merge import shard_reports

    opened = open_store(store)
    shown = live_snapshot(opened) if snapshot is None else read_snapshot(opened, snapshot)
    history = [summary(read_snapshot(opened, number)) for number in numbers(opened)]
    segments, shards = _segment_rows(opened, shown), shard_reports(opened, shown.body.index)

    def draw(console: Console) -> None:
        console.print(table("snapshots", history))
        console.print(table(f"segments and parts of snapshot {shown.number}", segments))
        console.print(table(f"shards of the index of snapshot {shown.number}, as verified when merged", shards))

    show(json_, {"snapshots": history, "segments": segments, "shards": shards}, draw)


@app.command()
def report(
    store: StoreArgument,
    out: Annotated[Path, typer.Option(help="Folder for the page and the pictures.")] = Path("dpr-report"),
    snapshot: SnapshotNumber = None,
    json_: Json = False,
) -> None:
    """Draw a snapshot's index: recall against latency, list sizes, memory by kind; one HTML page and PNG files."""
    from dpr.pipeline.picture import write_report

    opened = open_store(store)
    shown, marker = open_snapshot(opened, snapshot)
    with marker:
        page = write_report(opened, shown, out)
    show(json_, {"page": str(page)}, lambda console: console.print(f"{page}", highlight=False))


def _segment_rows(store: Store, snapshot: Snapshot) -> list[dict[str, Any]]:
    codebook = snapshot.body.codebook.codebook_id
    parts = {info.name: info.size_bytes for info in store.list(f"{layout.PARTS}{codebook}/")}
    return [
        {
            "number": entry.number,
            "segment": entry.segment_id,
            "rows": entry.rows,
            "live": entry.live_rows,
            "bytes": entry.object.size_bytes,
            "part_bytes": parts.get(layout.part(codebook, entry.segment_id), 0),
        }
        for entry in snapshot.body.segments
    ]


if __name__ == "__main__":
    main()
