"""The commands of `dpr` that say how a store stands: status, also of the run that works on it, and why."""

import json
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from dpr.formats.snapshots import live_snapshot, numbers
from dpr.operations.why import why as why_passage
from dpr.store import open_store
from ray_jobs.cli_common import Fields, Json, SnapshotNumber, StoreArgument, show, summary

app = typer.Typer()


@app.command()
def status(store: StoreArgument, json_: Json = False) -> None:
    """Show what a store holds: its live snapshot, encoder, index and the gate's figures."""
    opened = open_store(store)
    snapshot = live_snapshot(opened)
    gate = snapshot.body.gate.model_dump(mode="json")
    document = summary(snapshot) | {"snapshots": len(numbers(opened)), "gate": gate}

    def draw(console: Console) -> None:
        drawn = Table(show_header=False, title=opened.url, title_justify="left")
        for field, value in document.items():
            drawn.add_row(field, json.dumps(value) if isinstance(value, dict) else f"{value}")
        console.print(drawn)

    show(json_, document, draw)


@app.command()
def why(
    store: StoreArgument,
    passage_id: Annotated[str, typer.Argument(metavar="ID", help="Id of a passage.")],
    snapshot: SnapshotNumber = None,
    json_: Json = False,
) -> None:
    """Say why a passage was embedded, or its vector copied: new, edited, of another encoder; and by which run."""
    rows = why_passage(open_store(store), passage_id, snapshot)
    found: list[Fields] = [vars(row) | {"reason": row.reason.label if row.reason is not None else None} for row in rows]

    def draw(console: Console) -> None:
        for row in rows:
            console.print(row.describe(), highlight=False)

    show(json_, found, draw)
