"""What a question costs if each visits as many inverted lists as it needs, beside the same number for all.

    python benchmarks/lists_by_question.py --data DATA --cache CACHE --out FILE [--rows 1000000]

DATA and CACHE are those of benchmarks/index.py, whose vectors and index are used, and made if they are not there. The
margins are chosen on 500 of SQuAD's questions. Then all settings are measured on 500 others, in turn, one question at a
time, in CPU time of one thread, 200 candidates re-scored. Writes a table to FILE.
"""

import argparse
import time
from dataclasses import dataclass
from pathlib import Path

import faiss
import index
import index_search
import numpy as np
from index_data import Vectors
from index_search import Built

from dpr.index.candidates import SearchSettings
from dpr.index.truth import recall_at
from dpr.search.vector_search import VectorSearch

K, CANDIDATES, ROUNDS = 20, 200, 3
FIXED, AVERAGE = (128, 256, 512, 1024), (64, 96, 128, 192, 384)


@dataclass(frozen=True)
class Measured:
    """One setting: recall@20, and milliseconds a question."""

    settings: SearchSettings
    recall: float
    mean_ms: float
    p99_ms: float

    def row(self) -> str:
        average = "" if self.settings.margin is None else f" on average, margin {self.settings.margin:.3f}"
        return f"| {self.settings.nprobe:,}{average} | {self.recall:.4f} | {self.mean_ms:.2f} | {self.p99_ms:.2f} |"


def settings_of(built: Built, vectors: Vectors) -> list[SearchSettings]:
    """The same number of lists for all questions, and margins with which the tuning questions visit some on average."""
    questions_QD = vectors.questions_QD[vectors.tuning]
    below_N = np.sort(built.index.scores_below(questions_QD, K).reshape(-1))
    by_margin = [SearchSettings(n, CANDIDATES, K, float(below_N[n * len(questions_QD)])) for n in AVERAGE]
    return [*(SearchSettings(n, CANDIDATES, K) for n in FIXED), *by_margin]


def ask_all(built: Built, settings: SearchSettings, questions_QD: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """What is found (Q, K), and milliseconds of CPU time (Q,)."""
    search = VectorSearch(built.index, settings, built.segments)
    found, spent = [], []
    for question_D in questions_QD:
        started = time.thread_time()
        found.append(search.top(question_D[None], K)[1])
        spent.append(1e3 * (time.thread_time() - started))
    return np.concatenate(found), np.array(spent)


def measure(built: Built, vectors: Vectors) -> list[Measured]:
    """All settings, in turn; of the rounds of each, the fastest."""
    questions_QD, truth_QK = vectors.questions_QD[vectors.test], built.true_ids(vectors.test)
    best: dict[SearchSettings, Measured] = {}
    for _ in range(ROUNDS):
        for settings in settings_of(built, vectors):
            found_QK, spent_Q = ask_all(built, settings, questions_QD)
            recall, p99 = recall_at(found_QK, truth_QK, K), float(np.percentile(spent_Q, 99))
            each = Measured(settings, recall, float(spent_Q.mean()), p99)
            best[settings] = min(each, best.get(settings, each), key=lambda one: one.mean_ms)
    return list(best.values())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("--data", "--cache", "--out"):
        parser.add_argument(name, type=Path, required=True)
    parser.add_argument("--rows", type=int, default=1_000_000)
    given = parser.parse_args()
    faiss.omp_set_num_threads(1)
    bench = index.Bench(given.data, given.cache, given.rows, [])
    vectors = bench.vectors()
    index.our_process(bench, "segments")
    built = index_search.built("auto", vectors, bench.segments)
    lines = [
        f"# Lists by question, {given.rows:,} vectors",
        "",
        "    python benchmarks/lists_by_question.py --data DATA --cache CACHE --out FILE",
        "",
        f"{built.index.lists:,} lists; recall@{K} of {len(vectors.questions_QD[vectors.test])} questions that nothing "
        f"was chosen on; CPU time of one thread, {CANDIDATES} candidates re-scored, the best of {ROUNDS} rounds.",
        "",
        f"| lists visited | recall@{K} | mean ms | p99 ms |",
        "|---|---:|---:|---:|",
        *(each.row() for each in measure(built, vectors)),
    ]
    given.out.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
