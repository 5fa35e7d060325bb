"""What hybrid search and BM25 cost a question beside dense search, over a store of any size.

    PYTHONPATH=. python benchmarks/hybrid_cost.py --store STORE --questions squad/queries.jsonl.gz --out FILE.md

Each mode searches as the service does: the index of vectors, the index of words, the fusion that the snapshot names,
and the texts of the hits. Questions are encoded before, since dense and hybrid search encode alike. Times are CPU time
of one question at a time on one thread. Each question is answered in all modes, one after the other, so a slow minute
of the machine slows them all.

Shapes: Q questions, D dimensions, R rounds.
"""

import argparse
import time
from collections.abc import Callable
from pathlib import Path

import faiss
import numpy as np
import numpy.typing as npt

from benchmarks.bm25 import question_texts
from dpr.encoder.compute import Compute
from dpr.encoder.question_encoder import QuestionEncoder
from dpr.formats.manifest import Snapshot
from dpr.formats.snapshots import open_snapshot
from dpr.lexical.fusion import describe
from dpr.search.modes import ModeSearch
from dpr.search.retrieve import question_tower
from dpr.store import open_store

HITS, ROUNDS = (10, 100), 2
Search = Callable[[int], object]
Times = npt.NDArray[np.float64]


def searches(modes: ModeSearch, texts: list[str], questions_QD: npt.NDArray[np.float32], k: int) -> dict[str, Search]:
    """Return what answers the question of a number, by mode."""
    return {
        "dense": lambda q: modes.dense(questions_QD[q : q + 1], k),
        "bm25": lambda q: modes.bm25(texts[q : q + 1], k),
        "hybrid": lambda q: modes.hybrid(texts[q : q + 1], questions_QD[q : q + 1], k),
    }


def milliseconds(by_mode: dict[str, Search], questions: int) -> dict[str, Times]:
    """Return the times (Q,) of the questions in each mode: the least of its rounds, but for the first."""
    spent_RQ = {mode: np.zeros((1 + ROUNDS, questions)) for mode in by_mode}
    for row in range(1 + ROUNDS):
        for question in range(questions):
            for mode, search in by_mode.items():
                started = time.thread_time()
                search(question)
                spent_RQ[mode][row, question] = 1e3 * (time.thread_time() - started)
    return {mode: spent[1:].min(axis=0) for mode, spent in spent_RQ.items()}


def table(modes: ModeSearch, texts: list[str], questions_QD: npt.NDArray[np.float32]) -> list[str]:
    """Return a line of Markdown for each number of hits and each mode."""
    lines = [
        "| hits | mode | ms: median | mean | 99th percentile | more than dense: median |",
        "|---:|---|---:|---:|---:|---:|",
    ]
    for k in HITS:
        spent_Q = milliseconds(searches(modes, texts, questions_QD, k), len(texts))
        for mode, times_Q in spent_Q.items():
            figures = (np.median(times_Q), times_Q.mean(), np.percentile(times_Q, 99))
            more = "" if mode == "dense" else f"{np.median(times_Q - spent_Q['dense']):+.2f}"
            lines.append(f"| {k} | {mode} | {' | '.join(f'{figure:.2f}' for figure in figures)} | {more} |")
    return lines


def described(snapshot: Snapshot) -> str:
    """Say what is searched."""
    body, index = snapshot.body, snapshot.body.index
    lexical = body.lexical
    words = "no words" if lexical is None else f"words {lexical.size_bytes / 1e6:,.0f} MB, {describe(lexical.hybrid)}"
    return (
        f"{index.rows:,} passages in {len(body.segments)} segments; index {index.size_bytes / 1e6:,.0f} MB in "
        f"{len(index.shards)} shards, nprobe {index.nprobe}, rescore {index.rescore}; {words}"
    )


def main() -> None:
    """Measure a store, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--store", required=True)
    for name in ("--questions", "--out"):
        parser.add_argument(name, type=Path, required=True)
    parser.add_argument("--asked", type=int, default=500, help="How many of the questions are searched.")
    given = parser.parse_args()
    store = open_store(given.store)
    snapshot, marker = open_snapshot(store)
    texts = question_texts(given.questions)[: given.asked]
    precision = snapshot.body.encoder.config.precision
    questions_QD = QuestionEncoder(question_tower(snapshot, None), Compute(precision)).encode(texts)
    faiss.omp_set_num_threads(1)
    lines = [described(snapshot), "", *table(ModeSearch.open(store, snapshot), texts, questions_QD)]
    marker.close()
    print("\n".join(lines), flush=True)
    given.out.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
