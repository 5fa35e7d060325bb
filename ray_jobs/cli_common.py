"""What the commands share: their arguments, and how they show a result as a table or as JSON."""

import enum
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

from dpr.errors import RecipeError
from dpr.formats.manifest import Snapshot
from dpr.formats.snapshots import History
from dpr.recipe_service import MAX_RERANKED, RerankConfig
from ray_jobs.output import console, print_json

if TYPE_CHECKING:
    from dpr.search.rerank import Reranker

Fields = dict[str, object]
"""A row of a table: column → value."""
StoreArgument = Annotated[str, typer.Argument(metavar="STORE", help="Folder or s3://bucket/prefix.")]
RecipeArgument = Annotated[str, typer.Argument(metavar="RECIPE", help="Recipe file (YAML).")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON for scripts.")]
Model = Annotated[
    str | None,
    typer.Option(help="Folder or address of the snapshot's model, if it has moved; it may be fetched from there."),
]
Rerank = Annotated[
    str | None,
    typer.Option("--rerank", metavar="MODEL", help="Cross-encoder that re-ranks the best hits: folder or address."),
]
RerankTop = Annotated[int, typer.Option("--rerank-top", min=1, max=MAX_RERANKED, help="How many hits it reads.")]
RerankLabel = Annotated[
    int | None,
    typer.Option("--rerank-label", min=0, help="Which of its labels means an answer, if it has several."),
]
SnapshotNumber = Annotated[int | None, typer.Option("--snapshot", help="Snapshot to use; default: the live one.")]


class Stop(enum.StrEnum):
    """The last stage of a run that publishes nothing."""

    SCAN = "scan"
    EMBED = "embed"
    INDEX = "index"


def check_effect(context: typer.Context, names: Sequence[str], needs: str) -> None:
    """Raise RecipeError if one of these parameters was given, which have no effect without `needs`."""
    for name in names:
        source = context.get_parameter_source(name)
        if source is not None and source.name == "COMMANDLINE":
            option = f"--{name.replace('_', '-')}"
            raise RecipeError(f"{option} has no effect without {needs}; add that, or leave {option} out")


def opened_reranker(model: str, top: int, label: int | None, k: int) -> "Reranker":
    """Load the re-ranker that the command line names. Raises RecipeError if more hits are wanted than it reads."""
    from dpr.search.rerank import Reranker, check_depth

    check_depth(k, top)
    return Reranker.open(RerankConfig(model=model, top=top, label=label))


def reranker_fields(reranker: "Reranker") -> Fields:
    """Return the fields of the re-ranker that ordered an answer, for JSON."""
    return {"model": reranker.model, "reranker_id": reranker.reranker_id, "top": reranker.top}


def show(as_json: bool, document: object, draw: Callable[[Console], None]) -> None:
    """Print a result: as JSON for scripts, by `draw` for people."""
    if as_json:
        print_json(document)
    else:
        draw(console())


def summary(snapshot: Snapshot) -> Fields:
    """Return a snapshot as one row of a table."""
    body = snapshot.body
    accuracy = body.gate.accuracy_index
    return {
        "snapshot": snapshot.number,
        "published": snapshot.published_at,
        "passages": body.passages,
        "segments": len(body.segments),
        "encoder": body.encoder_id,
        "codebook": body.codebook.factory,
        "index_bytes": body.index.size_bytes,
        "shards": len(body.index.shards),
        "nprobe": body.index.nprobe,
        "rescore": body.index.rescore,
        "mode": body.lexical.mode if body.lexical else "dense",
        "recall": f"{body.gate.recall:.4f}",
        "answered": ", ".join(f"top-{rank} {accuracy[str(rank)]:.4f}" for rank in sorted(map(int, accuracy))),
        "note": snapshot.note,
    }


def history_rows(history: History) -> list[Fields]:
    """Return all snapshots as rows of a table, oldest first; those of damaged ones have `snapshot` and `damaged`."""
    rows = [summary(snapshot) for snapshot in history.snapshots]
    rows += [{"snapshot": each.number, "damaged": each.problem} for each in history.damaged]
    return sorted(rows, key=lambda row: int(str(row["snapshot"])))


def draw_history(console: Console, title: str, history: History) -> None:
    """Draw what people compare between snapshots, narrow enough for 80 columns; --json has all fields.

    Below the table, a sentence says what is wrong with each damaged one.
    """
    rows = [
        {
            "snapshot": each["snapshot"],
            "published (UTC)": str(each.get("published", ""))[:16].replace("T", " "),
            **{name: each.get(name, "") for name in ("passages", "mode", "recall", "answered")},
            "note": "damaged" if "damaged" in each else each["note"],
        }
        for each in history_rows(history)
    ]
    filled = {name for row in rows for name, value in row.items() if value != ""}
    console.print(table(title, [{name: value for name, value in row.items() if name in filled} for row in rows]))
    for each in history.damaged:
        console.print(f"damaged: {each.problem}", highlight=False)


def table(title: str, rows: Sequence[Fields]) -> Table:
    """Draw rows of equal fields as a table, numbers to the right."""
    drawn = Table(title=title, title_justify="left")
    for column in rows[0] if rows else ():
        is_number = any(isinstance(row[column], int | float) for row in rows)
        drawn.add_column(column.replace("_", " "), justify="right" if is_number else "left", overflow="fold")
    for row in rows:
        drawn.add_row(*map(_cell, row.values()))
    return drawn


def field_table(title: str, fields: Fields) -> Table:
    """Draw fields, each in a line of its own."""
    drawn = Table(show_header=False, title=title, title_justify="left")
    for name, value in fields.items():
        drawn.add_row(name.replace("_", " "), _cell(value))
    return drawn


def _cell(value: object) -> str:
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:.4g}" if isinstance(value, float) else str(value)
