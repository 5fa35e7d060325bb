"""What the index of words costs: build time, size, memory, and queries a second, beside bm25s.

    python benchmarks/bm25.py --corpus FOLDER --questions FILE.jsonl.gz --work WORK --out FILE.md

FOLDER holds Parquet files with the columns title and text; FILE has a question's text in the field `text` of each line.
Passages are cut into segments of 50,000, as a run cuts them. bm25s indexes the first `--peer-rows` passages, since it
holds all scores in memory; its time is compared with that of the same passages here. All times are of one thread.
"""

import argparse
import gzip
import json
import resource
import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import bm25s
import numpy as np
import pyarrow.parquet as pq
import Stemmer

from dpr.lexical.analysis import Analyzer, Hashes, term_hashes
from dpr.lexical.bm25 import Bm25
from dpr.lexical.postings import invert, map_postings, write_postings
from dpr.recipe_index import LexicalConfig

SEGMENT_ROWS, QUESTIONS, K = 50_000, 500, 200
CONFIG = LexicalConfig()


@dataclass(frozen=True)
class Part:
    """A lexical part in a file."""

    path: Path
    rows: int


def texts(folder: Path) -> Iterator[str]:
    for path in sorted(folder.glob("*.parquet")):
        for batch in pq.ParquetFile(path).iter_batches(10_000, columns=["title", "text"]):
            yield from (f"{row['title']} {row['text']}" for row in batch.to_pylist())


def build(folder: Path, work: Path) -> tuple[list[Part], float]:
    """Write the parts of all segments; returns them, and the CPU seconds that it took."""
    analyzer, rows = Analyzer(CONFIG), texts(folder)
    parts: list[Part] = []
    seconds = 0.0
    while segment := list(islice(rows, SEGMENT_ROWS)):
        started = time.process_time()
        path = work / f"{len(parts):04d}.safetensors"
        write_postings(invert(segment, analyzer), path)
        seconds += time.process_time() - started
        parts.append(Part(path, len(segment)))
    return parts, seconds


def opened(parts: list[Part], dead_share: float = 0.0) -> Bm25:
    rng = np.random.default_rng(0)
    segments = {
        number: (map_postings(part.path, part.rows, part.path.name), rng.random(part.rows) >= dead_share)
        for number, part in enumerate(parts)
    }
    return Bm25(segments, CONFIG.k1, CONFIG.b)


def question_texts(path: Path) -> list[str]:
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        return [json.loads(line)["text"] for line in islice(lines, QUESTIONS)]


def milliseconds(index: Bm25, questions: list[Hashes]) -> tuple[float, float]:
    """Return mean and 99th percentile of a question's CPU time: the better of two rounds, after one to warm up."""
    index.search(questions, K)
    rounds = []
    for _ in range(2):
        spent = []
        for question in questions:
            started = time.thread_time()
            index.search([question], K)
            spent.append(time.thread_time() - started)
        rounds.append((1e3 * float(np.mean(spent)), 1e3 * float(np.percentile(spent, 99))))
    return min(rounds)


def peer(folder: Path, rows: int, questions: list[str]) -> tuple[float, float]:
    """The CPU seconds in which bm25s indexes the first passages, and its milliseconds a question."""
    stemmer = Stemmer.Stemmer(CONFIG.language)
    some = list(islice(texts(folder), rows))
    started = time.process_time()
    index = bm25s.BM25(k1=CONFIG.k1, b=CONFIG.b)
    index.index(bm25s.tokenize(some, stopwords="english", stemmer=stemmer, show_progress=False), show_progress=False)
    built = time.process_time() - started
    tokens = bm25s.tokenize(questions, stopwords="english", stemmer=stemmer, show_progress=False)
    started = time.thread_time()
    index.retrieve(tokens, k=K, show_progress=False)
    return built, 1e3 * (time.thread_time() - started) / len(questions)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("--corpus", "--questions", "--work", "--out"):
        parser.add_argument(name, type=Path, required=True)
    parser.add_argument("--peer-rows", type=int, default=200_000)
    given = parser.parse_args()
    given.work.mkdir(parents=True, exist_ok=True)
    parts, seconds = build(given.corpus, given.work)
    rows, size = sum(part.rows for part in parts), sum(part.path.stat().st_size for part in parts)
    questions = question_texts(given.questions)
    analyzer = Analyzer(CONFIG)
    hashes = [term_hashes(analyzer.terms(question)) for question in questions]
    lines = [
        f"- built: {seconds:.0f} s of one core, {rows / seconds:,.0f} passages/s",
        f"- size: {size / 1e6:,.0f} MB, {size / rows:.0f} bytes a passage",
        "",
        "| passages | segments | open, s | ms a question | 99th percentile | questions/s |",
        "|---:|---:|---:|---:|---:|---:|",
    ]
    few = parts[: -(-given.peer_rows // SEGMENT_ROWS)]
    for some, dead_share in ((few, 0.0), (parts, 0.0), (parts, 0.01)):
        started = time.process_time()
        index = opened(some, dead_share)
        open_seconds = time.process_time() - started
        mean, high = milliseconds(index, hashes)
        dead = f", {dead_share:.0%} dead" if dead_share else ""
        lines.append(
            f"| {sum(part.rows for part in some):,}{dead} | {len(some)} | {open_seconds:.2f} | {mean:.2f} | {high:.2f} "
            f"| {1e3 / mean:,.0f} |"
        )
    lines += ["", f"- memory of the process at most, before bm25s: {peak_gb():.2f} GB"]
    if given.peer_rows:
        built, mean = peer(given.corpus, given.peer_rows, questions)
        lines.append(f"- bm25s, {given.peer_rows:,} passages: built in {built:.0f} s, {mean:.2f} ms a question")
    print("\n".join(lines), flush=True)
    given.out.write_text("\n".join(lines) + "\n", encoding="utf-8")


def peak_gb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9


if __name__ == "__main__":
    main()
