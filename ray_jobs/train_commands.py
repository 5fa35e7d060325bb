"""The commands of `dpr` that train encoders: train, mine."""

import enum
import io
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TextIO

import typer
from fsspec.compression import compr
from fsspec.utils import infer_compression
from rich.console import Console

from dpr.errors import OutputError
from dpr.plurals import counted
from dpr.store.reasons import reason_of
from ray_jobs.cli_common import Fields, Json, Model, RecipeArgument, SnapshotNumber, StoreArgument, show

if TYPE_CHECKING:
    from dpr.train.trained_model import TrainedModel

app = typer.Typer()


class MiningMode(enum.StrEnum):
    """How passages are searched."""

    BM25 = "bm25"
    DENSE = "dense"
    HYBRID = "hybrid"


@app.command()
def train(
    recipe: RecipeArgument,
    json_: Json = False,
    local: Annotated[bool, typer.Option("--local", help="Train in this process, without Ray.")] = False,
    then: Annotated[
        str | None,
        typer.Option(metavar="RECIPE", help="Recipe to run with the trained towers; published if they are better."),
    ] = None,
) -> None:
    """Train the towers of a training recipe; started again after a failure, it continues."""
    from dpr.train.trained_model import section_of
    from ray_jobs import tables
    from ray_jobs.train_jobs import train_and_run, train_whole

    made = train_and_run(recipe, then, local=local) if then else train_whole(recipe, local=local)
    document: Fields = {
        "steps": made.model.steps,
        "stopped_early": made.model.stopped_early,
        "measured": [each.model_dump() for each in made.model.measured],
        "encoder": made.encoder.model_dump(mode="json", exclude_defaults=True),
    }
    if made.outcome is not None:
        document |= {"snapshot": made.outcome.snapshot.number, "published": made.outcome.published}

    def draw(console: Console) -> None:
        console.print(describe(made.model), highlight=False)
        if made.outcome is not None:
            tables.print_outcome(console, made.outcome)
        console.print("for a recipe:", highlight=False)
        console.print(section_of(made.encoder).rstrip(), highlight=False)

    show(json_, document, draw)


@app.command()
def mine(
    store: StoreArgument,
    data: Annotated[str, typer.Option("--data", help="Training data: BEIR folder, or JSON, JSONL or Parquet.")],
    out: Annotated[
        str,
        typer.Option("--out", help="DPR training file (JSON) to write; packed if its name ends in .gz, .bz2 or .xz."),
    ],
    qrels: Annotated[str | None, typer.Option(help="BEIR: qrels; default: those of the train questions.")] = None,
    corpus: Annotated[str | None, typer.Option(help="BEIR: the passages, if they are not in the folder.")] = None,
    mode: Annotated[MiningMode, typer.Option(help="How passages are searched.")] = MiningMode.BM25,
    depth: Annotated[int, typer.Option(min=1, max=1000, help="Hits that are considered.")] = 100,
    negatives: Annotated[int, typer.Option(min=1, help="Hard negatives of a question, at most.")] = 30,
    margin: Annotated[
        float | None, typer.Option(min=0.0, help="How far below the best right hit a hit must score.")
    ] = None,
    snapshot: SnapshotNumber = None,
    model: Model = None,
    json_: Json = False,
) -> None:
    """Write training data with hard negatives: passages that a published snapshot finds, and that do not answer."""
    from dpr.search.retrieve import Retriever
    from dpr.store import open_store
    from dpr.store.mapped_files import keeping_more
    from dpr.train.example_files import read_examples
    from dpr.train.mine import Mining, mine
    from dpr.train.train_recipe import TrainingData

    examples = read_examples(TrainingData(path=data, qrels=qrels, corpus=corpus))
    with Retriever.open(open_store(store), snapshot, model) as retriever, writing(out) as file, keeping_more():
        retriever.check_mode(mode.value)
        mined = mine(
            examples,
            lambda questions, k: retriever.search(questions, k, mode=mode.value).hits,
            Mining(depth, negatives, margin),
            file,
        )
    document: Fields = {"out": str(out), **asdict(mined)}
    show(json_, document, lambda console: console.print(f"{out}: {mined.describe()}", highlight=False))


@contextmanager
def writing(name: str) -> Iterator[TextIO]:
    """Open a file to be written within the block; it gets its name only when it is complete.

    It is packed as its name says, since that is how it is read. Raises OutputError if it cannot be written.
    """
    if "://" in name:
        raise OutputError(f"{name} is a URL, and a file of this machine is written; name a path, and copy the file")
    path = Path(name)
    unfinished = path.with_name(f".{path.name}.tmp")
    try:
        with (
            unfinished.open("wb") as raw,
            compr[infer_compression(name)](raw, mode="wb") as packed,
            io.TextIOWrapper(packed, encoding="utf-8") as file,
        ):
            yield file
        unfinished.replace(path)
    except OSError as error:
        raise OutputError(f"{path} cannot be written: {reason_of(error)}; name another file") from error
    finally:
        unfinished.unlink(missing_ok=True)


def describe(model: "TrainedModel") -> str:
    """Return one line on the result of a training."""
    from dpr.train.checkpoints import best_of

    best = best_of(model.measured)
    early = ", ended early" if model.stopped_early else ""
    trained = f"trained {counted(model.steps, 'step')}{early}"
    if best is None:
        return trained
    first = model.measured[0]
    return (
        f"{trained}; dev accuracy {first.accuracy:.4f} before, {best.accuracy:.4f} after "
        f"step {best.step:,}; average rank {first.average_rank:.2f} before, {best.average_rank:.2f} after"
    )
