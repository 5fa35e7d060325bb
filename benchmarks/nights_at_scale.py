"""The nightly job at scale: a first night, a night with a small change, and one with none, each as a user runs it.

    python benchmarks/nights_at_scale.py --rows 21000000 --gpus 4 --work /data/nights
    python benchmarks/nights_at_scale.py --rows 300000 --file-rows 15000 --work /tmp/nights

Without `--encoder` the passage tower is BERT-base (110 million weights) with random weights, since speed does not
depend on them; without GPUs, a random BERT of two layers (64 dimensions, at most 64 tokens). Passages are 100 words of
sentences from `--sentences` (JSONL files with a field `text`, gzipped or not). A changed night edits a share of the
passages, in one file of twenty. Prints a table and writes it as Markdown.
"""

import argparse
import gzip
import json
import os
import random
import re
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import yaml
from processes import name_and_peak, objects_of, with_descendants

from dpr.engine.run_state import StageReport
from dpr.formats.gate_report import GateReport

WORDS = 100
CHANGED_FILES = 20
"""One file in so many is touched by a changed night."""
POLL_SECONDS = 1.0


@dataclass
class Night:
    """What one night took."""

    name: str
    seconds: float = 0.0
    stages: dict[str, StageReport] = field(default_factory=dict)
    gate: GateReport | None = None
    written: Counter[str] = field(default_factory=Counter)
    """Bytes of new objects by the first part of their names."""
    peaks: Counter[str] = field(default_factory=Counter)
    """Peak resident bytes of the driver, and of the largest other process by name."""
    gpu_busy: list[float] = field(default_factory=list)
    """Utilisation of all GPUs, sampled each second, 0 to 1."""


def main() -> None:
    """Run the nights and print what they took."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=300_000)
    parser.add_argument("--file-rows", type=int, default=100_000, help="passages of a corpus file")
    parser.add_argument("--gpus", type=int, default=0, help="encoders, each with a GPU; 0: one encoder on the CPUs")
    parser.add_argument("--changed", type=float, default=0.01, help="share of passages edited before the second night")
    parser.add_argument("--sentences", nargs="+", required=True, help="JSONL files with a field text")
    parser.add_argument("--encoder", help="model folder, or package:NAME/folder; default: a random network")
    parser.add_argument("--tokenizer", help="folder with the tokenizer of the random BERT-base")
    parser.add_argument("--work", type=Path, required=True, help="folder for corpus, model and store")
    parser.add_argument("--out", type=Path, help="Markdown file for the result")
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    write_corpus(options)
    recipe = write_recipe(options)
    nights = [run_night(recipe, "first night")]
    rows = edit_corpus(options)
    nights.append(run_night(recipe, f"{rows / options.rows:.2%} changed"))
    nights.append(run_night(recipe, "nothing changed"))
    text = table(options, nights)
    print(text)
    if options.out:
        options.out.write_text(text, encoding="utf-8")


def write_corpus(options: argparse.Namespace) -> None:
    """Write files of distinct passages, all cores at once."""
    folder = options.work / "corpus"
    folder.mkdir(exist_ok=True)
    files = -(-options.rows // options.file_rows)
    started = time.monotonic()
    with ProcessPoolExecutor(initializer=load_sentences, initargs=(options.sentences,)) as pool:
        jobs = [file_job(options, number) for number in range(files)]
        list(pool.map(partial(write_file, salt="first"), jobs))
    print(f"corpus: {options.rows:,} passages in {time.monotonic() - started:.0f} s", flush=True)


def file_job(options: argparse.Namespace, number: int) -> tuple[Path, int, int]:
    """Return what `write_file` needs to write one file: its folder, its number and its rows."""
    rows = min(options.file_rows, options.rows - number * options.file_rows)
    return options.work / "corpus", number, rows


_sentences: list[list[str]] = []


def load_sentences(paths: Sequence[str]) -> list[list[str]]:
    """Read all sentences of 4 to 60 words, once a process; return the words of each."""
    for path in paths if not _sentences else ():  # a process may be a fork of one that has read them
        opened = gzip.open(path, "rt") if path.endswith(".gz") else open(path)  # noqa: SIM115
        with opened as file:
            for line in file:
                pieces = re.split(r"(?<=[.!?])\s+", json.loads(line)["text"])
                _sentences.extend(words for piece in pieces if 4 <= len(words := piece.split()) <= 60)
    return _sentences


def write_file(job: tuple[Path, int, int], salt: str, edited: float = 1.0) -> int:
    """Write one file; with `edited` below 1 that share of its passages gets other texts. Returns how many it wrote."""
    folder, number, rows = job
    rng, again = random.Random(f"first-{number}"), random.Random(f"{salt}-{number}")
    texts, count = [], 0
    for _ in range(rows):
        text = passage(rng)
        if edited < 1.0 and again.random() < edited:
            text, count = passage(again), count + 1
        texts.append(text)
    ids = [f"{number:04d}-{row}" for row in range(rows)]
    columns = pa.table({"id": ids, "title": [f"title {number}"] * rows, "text": texts})
    path = folder / f"{number:04d}.parquet"
    pq.write_table(columns, path, compression="zstd", compression_level=1, row_group_size=10_000)
    return count if edited < 1.0 else rows


def passage(rng: random.Random) -> str:
    """Return 100 words of random sentences."""
    words: list[str] = []
    while len(words) < WORDS:
        words += rng.choice(_sentences)
    return " ".join(words[:WORDS])


def edit_corpus(options: argparse.Namespace, first: int = 0) -> int:
    """Give a share of all passages other texts, in one file in twenty from number `first` on; returns how many."""
    files = -(-options.rows // options.file_rows)
    jobs = [file_job(options, number) for number in range(first, files, CHANGED_FILES)]
    share = min(0.9, options.changed * options.rows / sum(rows for _, _, rows in jobs))
    with ProcessPoolExecutor(initializer=load_sentences, initargs=(options.sentences,)) as pool:
        return sum(pool.map(partial(write_file, salt="second", edited=share), jobs))


def write_recipe(options: argparse.Namespace) -> Path:
    """Write the recipe, and a random encoder if none is named."""
    encoder: dict[str, object] = {"model": options.encoder}
    if options.encoder is None and not options.gpus:
        from small_encoder import make_small_encoder

        encoder = make_small_encoder(options.work, load_sentences(options.sentences))
    elif options.encoder is None:
        from encode_subject import save_random_bert

        save_random_bert(options.work / "bert", Path(options.tokenizer))
        encoder = {"model": "./bert", "pooling": "mean", "title_join": "pair", "max_tokens": 256}
    document = {
        "store": "./store",
        "corpus": {"path": "./corpus"},
        "encoder": encoder,
        "resources": {"encoders": max(1, options.gpus)},
        # random weights make vectors that no index finds well; recall is measured all the same
        "gate": {"min_recall": 0.0},
    }
    path: Path = options.work / "recipe.yaml"
    path.write_text(yaml.safe_dump(document))
    return path


def run_night(recipe: Path, name: str) -> Night:
    """Run one night as a process of its own, watched from outside."""
    night, store = Night(name), recipe.parent / "store"
    before = objects_of(store)
    command = [sys.executable, "-m", "ray_jobs.cli", "run", str(recipe), "--json"]
    environment = os.environ | {"DPR_CACHE": str(recipe.parent / "cache"), "COLUMNS": "200"}
    started, done = time.monotonic(), threading.Event()
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as process:
        watchers = [
            threading.Thread(target=work, args=(night, done)) for work in (watch_gpus, partial(watch, process.pid))
        ]
        for watcher in watchers:
            watcher.start()
        output, _ = process.communicate()
        night.seconds = time.monotonic() - started
        done.set()
    for watcher in watchers:
        watcher.join()
    if process.returncode:
        sys.exit(f"{name} ended with code {process.returncode}")
    document = json.loads(output)
    reports = map(StageReport.model_validate, document.get("stages", []))  # a night without changes has none
    night.stages = {report.stage: report for report in reports}
    night.gate = GateReport.model_validate(document["gate"])
    for path in objects_of(store) - before:
        night.written[path.relative_to(store).parts[0]] += path.stat().st_size
    print(f"{name}: {night.seconds:.1f} s", flush=True)
    return night


def watch(pid: int, night: Night, done: threading.Event) -> None:
    """Note the peak memory of the driver and of the largest other process of each name."""
    while not done.wait(POLL_SECONDS):
        for process in with_descendants(pid):
            name, peak = name_and_peak(process)
            name = "driver" if process == pid else name
            night.peaks[name] = max(night.peaks[name], peak)


def watch_gpus(night: Night, done: threading.Event) -> None:
    """Sample the utilisation of all GPUs; nothing where there is none."""
    command = ["nvidia-smi", "--query-gpu=utilization.gpu", "--format=csv,noheader,nounits"]
    while not done.wait(POLL_SECONDS):
        try:
            found = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
        except (OSError, subprocess.CalledProcessError):
            return
        night.gpu_busy.append(sum(map(float, found)) / (100 * len(found)))


def table(options: argparse.Namespace, nights: Sequence[Night]) -> str:
    """Return all figures as Markdown."""
    return "\n".join(lines(options, nights)) + "\n"


def lines(options: argparse.Namespace, nights: Sequence[Night]) -> Iterator[str]:
    """Yield the lines of the table."""
    yield f"{options.rows:,} passages, {options.gpus} GPUs, {os.cpu_count()} CPUs; command: {' '.join(sys.argv)}"
    yield ""
    yield "| | " + " | ".join(night.name for night in nights) + " |"
    yield "|---|" + "---:|" * len(nights)
    for name in dict.fromkeys(stage for night in nights for stage in night.stages):
        yield f"| {name}, s | " + " | ".join(seconds_of(night.stages.get(name)) for night in nights) + " |"
    yield "| all, with start and planning, s | " + " | ".join(f"{night.seconds:.1f}" for night in nights) + " |"
    for name in dict.fromkeys(part for night in nights for part in night.written):
        yield f"| MB in {name} | " + " | ".join(f"{night.written[name] / 1e6:,.1f}" for night in nights) + " |"
    total = [sum(night.written.values()) for night in nights]
    first = total[0] or 1  # a first night with nothing to do writes nothing
    yield "| MB written | " + " | ".join(f"{size / 1e6:,.1f} ({size / first:.2%})" for size in total) + " |"
    for name in dict.fromkeys(name for night in nights for name in night.peaks):
        if any(night.peaks[name] > 300e6 for night in nights):
            yield f"| peak of {name}, MB | " + " | ".join(f"{night.peaks[name] / 1e6:,.0f}" for night in nights) + " |"
    if nights[0].gpu_busy:
        busy = [sum(night.gpu_busy) / max(1, len(night.gpu_busy)) for night in nights]
        yield "| GPUs busy over the whole night | " + " | ".join(f"{share:.2f}" for share in busy) + " |"
    gates = [night.gate for night in nights if night.gate]
    yield "| recall@20 | " + " | ".join(str(gate.recall) for gate in gates) + " |"
    yield "| search | " + " | ".join(gate.settings for gate in gates) + " |"


def seconds_of(stage: StageReport | None) -> str:
    """Return a stage's seconds, and its units where some were done before."""
    if stage is None:
        return ""
    now = f" ({stage.units - stage.done_before} of {stage.units} units)" if stage.done_before else ""
    return f"{stage.seconds:.1f}{now}"


if __name__ == "__main__":
    main()
