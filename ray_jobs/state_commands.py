"""The commands of `dpr` that show the state of a store: status, also of the run that works on it, and why."""

import json
from typing import Annotated

import typer
from rich.console import Console

from dpr.errors import UnitError
from dpr.formats.snapshots import live_snapshot, numbers
from dpr.operations.watch import Sight, follow
from dpr.operations.why import why as why_passage
from dpr.store import Store, open_store
from ray_jobs.cli_common import Fields, Json, SnapshotNumber, StoreArgument, check_effect, field_table, show, summary
from ray_jobs.output import console

app = typer.Typer()
QUIET_SECONDS = 60.0
"""Seconds between lines that report a missing heartbeat."""


@app.command()
def status(
    context: typer.Context,
    store: StoreArgument,
    watch: Annotated[
        bool, typer.Option("--watch", help="Follow the run that works on it, and end with its exit code.")
    ] = False,
    poll_seconds: Annotated[
        float, typer.Option(min=0.1, max=3600.0, help="With --watch: seconds between two checks.")
    ] = 5.0,
    json_: Json = False,
) -> None:
    """Show what a store holds: its live snapshot, encoder, index and the gate's figures; or follow a run."""
    if not watch:
        check_effect(context, ("poll_seconds",), "--watch")
    opened = open_store(store)
    if watch:
        raise typer.Exit(_watch(opened, poll_seconds, as_json=json_))
    snapshot = live_snapshot(opened)
    gate = snapshot.body.gate.model_dump(mode="json")
    document = summary(snapshot) | {"snapshots": len(numbers(opened)), "gate": gate}

    def draw(console: Console) -> None:
        console.print(field_table(opened.url, document | {"gate": snapshot.body.gate.settings}))

    show(json_, document, draw)


def _watch(store: Store, poll_seconds: float, *, as_json: bool) -> int:
    """Show the progress of a run, a line for each change, until it ends; returns its exit code.

    Raises UnitError if it died.
    """
    shown, sight, out = None, None, console()
    for sight in follow(store, poll_seconds):
        if (changed := (sight.lease, sight.is_over, sight.silent_seconds // QUIET_SECONDS)) != shown:
            shown = changed
            if as_json:
                print(json.dumps(_fields(sight)), flush=True)
            else:
                out.print(sight.describe(), highlight=False)
    if sight is None:
        out.print(f"nobody has worked on store {store.url} yet", highlight=False)
        return 0
    if sight.is_dead:
        raise UnitError(f"{sight.describe()}; start the run again to go on from there")
    return sight.ending.exit_code or 0 if sight.ending is not None else 0


def _fields(sight: Sight) -> Fields:
    return {
        "holder": str(sight.holder),
        "fencing_number": sight.lease.fencing_number,
        "heartbeat": sight.lease.modified,
        "silent_seconds": round(sight.silent_seconds, 1),
        "is_over": sight.is_over,
        "run": sight.run.model_dump(mode="json") if sight.run is not None else None,
    }


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
