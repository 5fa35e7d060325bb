"""The commands of `dpr` that look after a store: history, rollback, verify, gc, diff."""

from typing import Annotated

import typer
from rich.console import Console

from dpr import maintain, snapshot
from dpr.collect import collect, find_garbage
from dpr.errors import IntegrityError
from dpr.store import open_store
from dpr.store.lease import Lease
from ray_jobs.cli_common import Json, StoreArgument, show, summary, table

app = typer.Typer()


@app.command()
def history(store: StoreArgument, json_: Json = False) -> None:
    """All snapshots, oldest first; the last one is live."""
    opened = open_store(store)
    rows = [summary(snapshot.read_snapshot(opened, number)) for number in snapshot.numbers(opened)]
    show(json_, rows, lambda console: console.print(table(f"snapshots of {opened.url}", rows)))


@app.command()
def rollback(
    store: StoreArgument, number: Annotated[int, typer.Argument(metavar="N", help="Snapshot to go back to.")]
) -> None:
    """Publish an old snapshot's body again, under a new number; nothing is deleted."""
    new = snapshot.rollback(open_store(store), number)
    Console().print(f"snapshot {new.number} is live, with the body of snapshot {number}", highlight=False)


@app.command()
def verify(
    store: StoreArgument,
    deep: Annotated[bool, typer.Option("--deep", help="Also every checksum, key and id.")] = False,
    every: Annotated[bool, typer.Option("--all", help="All snapshots, not only the live one.")] = False,
    json_: Json = False,
) -> None:
    """Check that everything a snapshot names is there and as it was recorded; exit code 6 if not."""
    opened = open_store(store)
    chosen = snapshot.numbers(opened) if every else [snapshot.live_snapshot(opened).number]
    checked, problems = maintain.verify(opened, chosen, deep=deep)
    document = {"snapshots": chosen, "objects": checked, "problems": [vars(problem) for problem in problems]}

    def draw(console: Console) -> None:
        for problem in problems:
            console.print(f"snapshot {problem.snapshot}: {problem.object}: {problem.said}", markup=False)
        console.print(f"{checked} objects of {len(chosen)} snapshots checked, {len(problems)} problems")

    show(json_, document, draw)
    if problems:
        raise IntegrityError(f"store {opened.url} has {len(problems)} problems; roll back to a snapshot without any")


@app.command()
def gc(
    store: StoreArgument,
    keep: Annotated[int, typer.Option(min=1, help="Snapshots to keep, counted from the live one.")] = 7,
    delete: Annotated[bool, typer.Option("--delete", help="Delete; without it, only list.")] = False,
    json_: Json = False,
) -> None:
    """List (or delete) what the last snapshots, runs that may go on and readers do not need."""
    opened = open_store(store)
    snapshot.live_snapshot(opened)  # a folder without any is no store: nothing in it is garbage
    with Lease.acquire(opened, "gc") as lease:  # so that no run is under way whose objects nothing names yet
        garbage = collect(opened, keep, lease) if delete else find_garbage(opened, keep)
    objects = [*garbage.objects, *garbage.leftovers]
    document = {
        "deleted": delete,
        "kept": garbage.kept,
        "readers": [{"snapshot": reader.snapshot, "who": reader.who} for reader in garbage.readers],
        "bytes": garbage.size_bytes,
        "objects": [info.name for info in objects],
    }

    def draw(console: Console) -> None:
        for info in objects:
            console.print(f"{info.size_bytes:>14,}  {info.name}", highlight=False)
        for reader in garbage.readers:
            console.print(f"snapshot {reader.snapshot} is read: {reader.who}", highlight=False)
        said = "deleted" if delete else "would be deleted; pass --delete to do it"
        kept = ", ".join(map(str, garbage.kept))
        console.print(f"kept: snapshots {kept}", highlight=False)
        console.print(f"{len(objects):,} objects, {garbage.size_bytes:,} bytes {said}", highlight=False)

    show(json_, document, draw)


@app.command()
def diff(
    store: StoreArgument,
    a: Annotated[int, typer.Argument(metavar="A", help="Older snapshot.")],
    b: Annotated[int, typer.Argument(metavar="B", help="Newer snapshot.")],
    json_: Json = False,
) -> None:
    """Passages added, removed and changed from snapshot A to snapshot B."""
    difference = maintain.compare(open_store(store), a, b)

    def draw(console: Console) -> None:
        for sign, ids in (("+", difference.added), ("-", difference.removed), ("~", difference.changed)):
            for passage_id in ids:
                console.print(f"{sign} {passage_id}", markup=False, highlight=False)
        console.print(
            f"{len(difference.added):,} added, {len(difference.removed):,} removed, {len(difference.changed):,} changed"
        )

    show(json_, vars(difference), draw)
