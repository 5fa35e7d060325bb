"""The commands of `dpr` that maintain a store: report, history, rollback, verify, gc, diff."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from dpr.errors import IntegrityError, RecipeError
from dpr.formats import layout
from dpr.formats.snapshots import foreign_names, live_snapshot, numbers, open_snapshot, read_history
from dpr.operations.compare import compare
from dpr.operations.gc import collect, find_garbage
from dpr.operations.make_report import latest_report, report_of_dead
from dpr.operations.rollback import rollback as rollback_to
from dpr.operations.verify import Problem, damaged_documents
from dpr.operations.verify import verify as verify_store
from dpr.operations.verify_corpus import ChangedFile, verify_corpus
from dpr.plurals import counted
from dpr.recipe_file import load_recipe
from dpr.store import Store, open_store
from dpr.store.lease import Lease
from ray_jobs.cli_common import Json, SnapshotNumber, StoreArgument, draw_history, history_rows, show

app = typer.Typer()


@app.command()
def report(
    store: StoreArgument,
    out: Annotated[Path, typer.Option(help="Folder for the page and the pictures.")] = Path("dpr-report"),
    snapshot: SnapshotNumber = None,
    json_: Json = False,
) -> None:
    """Draw a snapshot's index (recall against latency, list sizes, memory by kind), and the report of its run."""
    from dpr.operations.index_report import write_report
    from dpr.operations.run_page import write_run_page

    opened = open_store(store)
    shown, marker = open_snapshot(opened, snapshot)
    with marker:
        page, made = write_report(opened, shown, out), latest_report(opened, shown.run_id)
    document = {"page": str(page), "run_page": str(write_run_page(made, out)) if made else None}

    def draw(console: Console) -> None:
        for path in filter(None, document.values()):
            console.print(path, highlight=False)

    show(json_, document, draw)


@app.command()
def history(
    store: StoreArgument,
    report: Annotated[Path | None, typer.Option(help="Folder to draw accuracy and recall into.")] = None,
    json_: Json = False,
) -> None:
    """List all snapshots, oldest first; the last one is live."""
    opened = open_store(store)
    live_snapshot(opened)  # a folder without a snapshot is no store
    found = read_history(opened)
    page: Path | None = None
    if report is not None:
        from dpr.operations.nights_report import write_nights

        page = write_nights(opened, found, report)

    def draw(console: Console) -> None:
        draw_history(console, f"snapshots of {opened.url}", found)
        if page is not None:
            console.print(str(page), highlight=False)

    show(json_, history_rows(found), draw)


@app.command()
def rollback(
    store: StoreArgument,
    number: Annotated[int, typer.Argument(metavar="N", help="Snapshot to go back to.")],
    json_: Json = False,
) -> None:
    """Publish an old snapshot's body again, under a new number; nothing is deleted."""
    new = rollback_to(open_store(store), number)
    done = f"snapshot {new.number} is live, with the body of snapshot {number}"
    show(json_, {"snapshot": new.number, "body_of": number}, lambda console: console.print(done, highlight=False))


@app.command()
def verify(
    store: StoreArgument,
    deep: Annotated[bool, typer.Option("--deep", help="Also every checksum, key, id and vector.")] = False,
    every: Annotated[bool, typer.Option("--all", help="All snapshots, not only the live one.")] = False,
    recipe: Annotated[
        str | None,
        typer.Option(help="With --deep: also read this recipe's unchanged corpus files."),
    ] = None,
    json_: Json = False,
) -> None:
    """Check that every object that a snapshot names exists and is as recorded; exit code 6 if not."""
    if recipe is not None and not deep:
        raise RecipeError(f"--recipe {recipe} reads the whole corpus, so it needs --deep; add that, or leave it out")
    opened = open_store(store)
    chosen = numbers(opened) if every else [live_snapshot(opened).number]
    # the newest first: an object that several snapshots name counts for the newest of them
    checked, problems = verify_store(opened, chosen[::-1], deep=deep)
    problems += [] if every else damaged_documents(opened)
    foreign = foreign_names(opened)
    slices, changed = _verify_corpus(opened, recipe) if recipe is not None else (0, [])
    document = {
        "snapshots": chosen,
        "objects": checked,
        "problems": [vars(problem) for problem in problems],
        "foreign": foreign,
        "corpus_slices": slices,
        "corpus_problems": [vars(file) for file in changed],
    }

    def draw(console: Console) -> None:
        for problem in problems:
            console.print(f"snapshot {problem.snapshot}: {problem.object}: {problem.reason}")
        for name in foreign:
            console.print(f"{name} is not a snapshot, and no command reads it; it does no harm")
        for file in changed:
            console.print(f"corpus file {file.path}: {file.reason}")
        console.print(
            f"{counted(checked, 'object')} of {counted(len(chosen), 'snapshot')} checked, "
            f"{counted(len(problems), 'problem')}"
        )
        if recipe is not None:
            console.print(
                f"{counted(slices, 'scanned slice')} of the corpus read again, {counted(len(changed), 'changed file')}"
            )

    show(json_, document, draw)
    if problems:
        raise IntegrityError(
            f"store {opened.url} has {counted(len(problems), 'problem')}{_advice(chosen[-1], problems)}"
        )
    if changed:
        raise IntegrityError(
            f"{counted(len(changed), 'corpus file')} changed without a sign; write them again and run the recipe"
        )


def _advice(live: int, problems: Sequence[Problem]) -> str:
    """Return what to do about problems of a store, to end the sentence that counts them."""
    damaged = {problem.object for problem in problems if problem.snapshot == live}
    if layout.snapshot(live) in damaged:
        return f"; first mend the document of its live snapshot {live}, as the lines above say"
    if damaged:
        return "; roll back to a snapshot without any"
    return f", and its live snapshot {live} has none; mend what is named above"


def _verify_corpus(store: Store, recipe_path: str) -> tuple[int, list[ChangedFile]]:
    """Check the corpus of a recipe, whose store this must be, against its scans."""
    recipe = load_recipe(recipe_path)
    if open_store(recipe.store).url != store.url:
        raise RecipeError(f"recipe {recipe_path} is for store {recipe.store}, not for {store.url}; name its own store")
    return verify_corpus(store, live_snapshot(store), recipe)


@app.command()
def gc(
    store: StoreArgument,
    keep: Annotated[int, typer.Option(min=1, help="Snapshots to keep, counted from the live one.")] = 7,
    delete: Annotated[bool, typer.Option("--delete", help="Delete; without it, only list.")] = False,
    json_: Json = False,
) -> None:
    """List or delete objects that neither the last snapshots, nor readers, nor runs that may be continued need."""
    opened = open_store(store)
    live_snapshot(opened)  # a folder without a snapshot is not a store, so nothing in it is garbage
    # no run may be in progress: no record names its newest objects yet
    with Lease.acquire(opened, "gc", deletes=delete) as lease:
        report_of_dead(opened, lease.predecessor)
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
        what = "deleted" if delete else "would be deleted; pass --delete to do it"
        kept = ", ".join(map(str, garbage.kept))
        console.print(f"kept: snapshots {kept}", highlight=False)
        console.print(f"{counted(len(objects), 'object')}, {garbage.size_bytes:,} bytes {what}", highlight=False)

    show(json_, document, draw)


@app.command()
def diff(
    store: StoreArgument,
    a: Annotated[int, typer.Argument(metavar="A", help="Older snapshot.")],
    b: Annotated[int, typer.Argument(metavar="B", help="Newer snapshot.")],
    json_: Json = False,
) -> None:
    """List the passages that were added, removed and changed from snapshot A to snapshot B."""
    difference = compare(open_store(store), a, b)

    def draw(console: Console) -> None:
        for sign, ids in (("+", difference.added), ("-", difference.removed), ("~", difference.changed)):
            for passage_id in ids:
                console.print(f"{sign} {passage_id}", highlight=False)
        console.print(
            f"{len(difference.added):,} added, {len(difference.removed):,} removed, {len(difference.changed):,} changed"
        )

    show(json_, vars(difference), draw)
