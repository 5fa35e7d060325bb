"""Bytes that each of thirty nights writes, of which every one edits 1% of the passages.

    python -m benchmarks.thirty_nights --passages 200000 --out benchmarks/results/thirty_nights.md

Every night runs in this process, without Ray, over a folder store. Passages are made-up words, and the encoder has
random weights: bytes of vectors, codes and index depend on neither. Prints a Markdown table and writes it to `--out`.
"""

import argparse
import os
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from benchmarks.night import Corpus, Setting, objects_of, write_recipe
from dpr.engine.executor import LocalExecutor
from dpr.recipe_file import load_recipe
from dpr.run_recipe import run_recipe
from tests.tiny import Quiet

SHARE = 0.01
"""Of the passages, edited each night."""
PARTS = ("segments", "parts", "indexes", "truth", "scans", "runs", "deletions")


def main() -> None:
    """Run the nights and print what they wrote."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--passages", type=int, default=200_000)
    parser.add_argument("--nights", type=int, default=30, help="after the first")
    parser.add_argument("--out", type=Path, help="Markdown file for the result")
    options = parser.parse_args()
    lines = [
        f"| night | seconds | MB written | of the first | {' | '.join(PARTS)} | shards | dead rows in shards |",
        f"|---:|---:|---:|---:|{'---:|' * len(PARTS)}---:|---:|",
    ]
    with tempfile.TemporaryDirectory() as name:
        os.environ["DPR_CACHE"] = str(Path(name, "cache"))
        setting = Setting(Path(name), options.passages, words=20, dim=128, factory="auto", questions=200)
        corpus = Corpus(setting)
        corpus.write()
        recipe = write_recipe(setting, corpus)
        first_bytes = 0
        for night in range(options.nights + 1):
            if night:
                corpus.change(SHARE)
                corpus.write()
            line, written_bytes = run_night(recipe, night, first_bytes)
            first_bytes = first_bytes or written_bytes
            print(line, file=sys.stderr, flush=True)
            lines.append(line)
    text = "\n".join(lines) + "\n"
    print(text)
    if options.out:
        options.out.write_text(text, encoding="utf-8")


def run_night(path: Path, night: int, first_bytes: int) -> tuple[str, int]:
    """Run one night; return its line of the table and the bytes that it wrote."""
    store = path.parent / "store"
    before = objects_of(store)
    recipe = load_recipe(path)
    # random weights make vectors that no index finds well
    recipe = recipe.model_copy(update={"gate": recipe.gate.model_copy(update={"min_recall": 0.0})})
    started = time.perf_counter()
    index = run_recipe(recipe, LocalExecutor(), Quiet()).snapshot.body.index
    seconds = time.perf_counter() - started
    written: Counter[str] = Counter()
    for file in objects_of(store) - before:
        written[file.relative_to(store).parts[0]] += file.stat().st_size
    total = written.total()
    cells = [f"{written[part] / 1e6:.2f}" for part in PARTS]
    dead = sum(shard.rows - shard.live_rows for shard in index.shards)
    share = f"{total / (first_bytes or total):.1%}"
    cells = [str(night), f"{seconds:.1f}", f"{total / 1e6:.1f}", share, *cells, str(len(index.shards)), f"{dead:,}"]
    return f"| {' | '.join(cells)} |", total


if __name__ == "__main__":
    main()
