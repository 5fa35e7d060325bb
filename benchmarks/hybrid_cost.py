"""What hybrid search adds to dense search, a question, up to a million passages.

    PYTHONPATH=. python benchmarks/hybrid_cost.py --corpus FOLDER --questions FILE.jsonl.gz --work WORK --out FILE.md

The corpus, the questions and the parts are those of `benchmarks/bm25.py`; WORK keeps what was made. Hybrid search asks
the index of vectors as dense search does, for 20 candidates as the gate chose on SQuAD and MedQuAD. So that index is
left out here: its candidates are drawn at random, at no cost, and what is measured is all the rest: BM25, its scores of
the other candidates, the inner products of those that words found, and the ranking. Vectors are random; those of a
million passages lie in mapped files. Times are CPU time of one question at a time on one thread.

Shapes: Q questions, N rows of a segment, D dimensions, C candidates.
"""

import argparse
import json
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from benchmarks.bm25 import CONFIG, Part, asked, build, opened
from dpr.formats.lexical_entry import FusionSettings
from dpr.index.row_ids import ROW_BITS
from dpr.lexical.analysis import Analyzer
from dpr.search.hybrid_search import HybridSearch
from dpr.search.lexical_search import LexicalSearch

DIM, CANDIDATES, K, ROUNDS = 384, 20, 10, 3
Ids = npt.NDArray[np.int64]


class DrawnVectors:
    """Stands in for the index of vectors and for the segments."""

    windows = False

    def __init__(self, files: list[Path], rows: list[int]) -> None:
        self.segments = self
        self._vectors = [np.load(path, mmap_mode="r") for path in files]
        self._rows, self._rng = rows, np.random.default_rng(1)
        self._drawn: Ids = np.empty((0, CANDIDATES), np.int64)

    def draw(self) -> None:
        """Draw the candidates of the next question."""
        segments_C = self._rng.integers(len(self._rows), size=CANDIDATES)
        rows_C = self._rng.integers(min(self._rows), size=CANDIDATES)
        self._drawn = (segments_C << ROW_BITS | rows_C)[np.newaxis]

    def top(self, questions_QD: npt.NDArray[np.float32], most: int, rows: object) -> tuple[None, Ids]:  # noqa: ARG002
        return None, self._drawn

    def fetching(self, ids_QC: Ids) -> object:  # noqa: ARG002
        return lambda ids_N: np.stack([self._vectors[i >> ROW_BITS][i & (1 << ROW_BITS) - 1] for i in ids_N.tolist()])


@dataclass(frozen=True)
class Made:
    """The parts of all segments, and files with as many vectors."""

    parts: list[Part]
    vectors: list[Path]


def make(corpus: Path, work: Path) -> Made:
    """Invert the corpus and draw vectors, unless that was done before."""
    work.mkdir(parents=True, exist_ok=True)
    done = work / "rows.json"
    if not done.exists():
        parts, _ = build(corpus, work)
        rng = np.random.default_rng(0)
        for number, part in enumerate(parts):
            np.save(work / f"{number:04d}.npy", rng.standard_normal((part.rows, DIM), np.float32).astype(np.float16))
        done.write_text(json.dumps([part.rows for part in parts]))
    rows = json.loads(done.read_text())
    names = [work / f"{number:04d}" for number in range(len(rows))]
    parts = [Part(name.with_suffix(".safetensors"), count) for name, count in zip(names, rows, strict=True)]
    return Made(parts, [name.with_suffix(".npy") for name in names])


def milliseconds(search: HybridSearch, drawn: DrawnVectors, texts: list[str]) -> tuple[float, float, float]:
    """Return median, mean and 99th percentile of the CPU time of a question, of the round with the least median."""
    settings = FusionSettings(fusion="scaled", weight=10.0, candidates=CANDIDATES)
    question_QD = np.random.default_rng(2).standard_normal((1, DIM), np.float32)
    rounds = []
    for _ in range(1 + ROUNDS):  # the first compiles and maps
        spent = []
        for text in texts:
            drawn.draw()
            started = time.thread_time()
            (found,) = search.candidates([text], question_QD, CANDIDATES)
            found.best(settings, K)
            spent.append(1e3 * (time.thread_time() - started))
        rounds.append((float(np.median(spent)), float(np.mean(spent)), float(np.percentile(spent, 99))))
    return min(rounds[1:])


def main() -> None:
    """Make what is missing, measure, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("--corpus", "--questions", "--work", "--out"):
        parser.add_argument(name, type=Path, required=True)
    given = parser.parse_args()
    made = make(given.corpus, given.work)
    texts = asked(given.questions)
    lines = ["| passages | segments | ms more: median | mean | 99th percentile |", "|---:|---:|---:|---:|---:|"]
    for segments in sorted({1, len(made.parts)}):
        parts = made.parts[:segments]
        drawn = DrawnVectors(made.vectors[:segments], [part.rows for part in parts])
        words = LexicalSearch(opened(parts), Analyzer(CONFIG))
        figures = milliseconds(HybridSearch(drawn, words), drawn, texts)  # type: ignore[arg-type]
        rows = sum(part.rows for part in parts)
        lines.append(f"| {rows:,} | {segments} | {' | '.join(f'{figure:.2f}' for figure in figures)} |")
    print("\n".join(lines), flush=True)
    given.out.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
