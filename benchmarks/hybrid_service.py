"""How well the service answers in each of its modes, and whether hybrid search is better than both of its sides.

    PYTHONPATH=. python benchmarks/hybrid_service.py --data DATA --work WORK --out FILE.md

DATA holds SQuAD and MedQuAD in BEIR layout. WORK keeps the stores, which `benchmarks/hybrid.py` may have made. Each
collection is indexed with MiniLM at the default settings, and its development questions are the gate's, which tunes the
fusion on one half of them, at most 1,000. Then `dpr serve` is started, and asked over HTTP, for 100 hits, the questions
that nothing was tuned on. Then others are tuned on, and those that were tuned on before are asked: so each question is
asked once, with settings that it had no part in. Intervals are 95%, from 10,000 bootstrap samples.
"""

import argparse
import json
import subprocess
import sys
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path

import numpy as np

from benchmarks.hybrid import COLLECTIONS, snapshot_of
from dpr.evaluate.metrics import Metrics, judge
from dpr.evaluate.questions import QuestionSet
from dpr.evaluate.rankings import Comparison, Ranking
from dpr.formats.manifest import SnapshotBody
from dpr.lexical.fusion import describe
from dpr.recipe_index import IndexConfig
from dpr.search.hits import Hit
from dpr.stages.question_halves import split_questions
from tests.services.endpoint import free_ports

MODES = ("dense", "bm25", "hybrid")
METRICS = Metrics((1, 20, 100), "ids")
SHOWN = ("accuracy@1", "accuracy@20", "accuracy@100", "nDCG@10")
QUESTIONS_AT_ONCE = 100


@contextmanager
def served(store: Path) -> Iterator[str]:
    """Serve a store as a user does while the block runs; gives the service's URL."""
    (port,) = free_ports(1)
    command = [sys.executable, "-m", "ray_jobs.cli", "serve", str(store), "--port", str(port)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as service:
        try:
            for line in service.stdout or ():
                if "Ctrl-C" in line:
                    break
            else:
                raise SystemExit(f"{' '.join(command)} ended with code {service.wait()}")
            yield f"http://127.0.0.1:{port}"
        finally:
            service.terminate()


def ask(url: str, questions: QuestionSet, mode: str) -> Ranking:
    """Ask the service all questions in one mode."""
    judged = []
    for first in range(0, len(questions.questions), QUESTIONS_AT_ONCE):
        some = replace(questions, questions=questions.questions[first : first + QUESTIONS_AT_ONCE])
        body = json.dumps({"queries": some.texts, "k": METRICS.depth, "mode": mode}).encode()
        request = urllib.request.Request(f"{url}/v1/search", body, {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=600) as response:
            results = json.load(response)["results"]
        hits = [[Hit(hit["rank"], hit["score"], hit["id"], "", "") for hit in each["hits"]] for each in results]
        judged += judge(some, hits)
    return Ranking(mode, METRICS, tuple(judged), METRICS.values(questions.questions, judged))


@dataclass(frozen=True)
class Fold:
    """The questions that one tuning leaves, asked in each mode, and what the gate chose."""

    rankings: list[Ranking]
    tuned: int
    fusion: str


def measure(data: Path, store: Path) -> tuple[SnapshotBody, list[Fold]]:
    """Tune on some questions and ask the others, then the other way round; returns the last snapshot and both."""
    snapshot, questions = snapshot_of(data, store)
    tuned, held_out = split_questions(len(questions.questions), IndexConfig().seed)
    folds = [fold(store, snapshot.body, questions, len(tuned), held_out.tolist())]
    changed = list(questions.questions)
    for one, other in zip(tuned.tolist(), held_out.tolist(), strict=False):
        changed[one], changed[other] = changed[other], changed[one]
    queries = store.with_name(f"{store.name}-queries.jsonl")
    lines = (json.dumps({"_id": each.id, "text": each.text}) + "\n" for each in changed)
    queries.write_text("".join(lines), encoding="utf-8")
    snapshot, questions = snapshot_of(data, store, queries)
    asked = held_out[: len(tuned)].tolist()  # where those stand now that were tuned on
    return snapshot.body, [*folds, fold(store, snapshot.body, questions, len(tuned), asked)]


def fold(store: Path, body: SnapshotBody, questions: QuestionSet, tuned: int, asked: Sequence[int]) -> Fold:
    """Serve the live snapshot, and ask some of the questions."""
    if body.lexical is None:
        raise SystemExit(f"{store} has no index of words")
    some = replace(questions, questions=tuple(questions.questions[place] for place in asked))
    with served(store) as url:
        rankings = [ask(url, some, mode) for mode in MODES]
    return Fold(rankings, tuned, describe(body.lexical.hybrid))


def together(folds: Sequence[Fold]) -> list[Ranking]:
    """Return the rankings of all questions, by mode."""
    found = []
    for parts in zip(*(each.rankings for each in folds), strict=True):
        judged = tuple(chain.from_iterable(part.judged for part in parts))
        found.append(replace(parts[0], judged=judged, values_QM=np.concatenate([part.values_QM for part in parts])))
    return found


def table(rankings: Sequence[Ranking]) -> list[str]:
    """Return means with their intervals, as lines of Markdown."""
    lines = ["| mode | top-1 | top-20 | top-100 | nDCG@10 |", "|---|---:|---:|---:|---:|"]
    for ranking in rankings:
        found = [ranking.intervals[name] for name in SHOWN]
        cells = [f"{each.mean:.4f} ({each.low:.4f} to {each.high:.4f})" for each in found]
        lines.append(f"| {ranking.name} | {' | '.join(cells)} |")
    return lines


def differences(rankings: Sequence[Ranking]) -> list[str]:
    """Return what the last ranking gains over the others, question by question, as lines of Markdown."""
    *others, hybrid = rankings
    lines = ["| hybrid minus | " + " | ".join(SHOWN) + " |", "|---|---:|---:|---:|---:|"]
    for other in others:
        found = [Comparison(other, hybrid).differences[name] for name in SHOWN]
        cells = [f"{each.mean:+.4f} ({each.low:+.4f} to {each.high:+.4f}), p {each.p_value:.4f}" for each in found]
        lines.append(f"| {other.name} | {' | '.join(cells)} |")
    return lines


def main() -> None:
    """Index, serve, ask, and write what was measured."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("--data", "--work", "--out"):
        parser.add_argument(name, type=Path, required=True)
    given = parser.parse_args()
    lines: list[str] = []
    for name in COLLECTIONS:
        body, folds = measure(given.data / name, given.work / name)
        every = together(folds)
        lines += ["", f"## {name}: {body.passages:,} passages, {len(every[0].judged):,} questions", ""]
        lines += [*table(every), "", *differences(every)]
        for each in folds:
            lines += [
                "",
                f"{len(each.rankings[0].judged):,} of them, tuned on {each.tuned:,} others: {each.fusion}.",
                "",
            ]
            lines += table(each.rankings)
        print("\n".join(lines), flush=True)
    given.out.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
