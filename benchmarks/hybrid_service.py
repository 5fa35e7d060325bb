"""How well the service answers in each of its modes, and whether hybrid search is better than both of its sides.

    PYTHONPATH=. python benchmarks/hybrid_service.py --data DATA --work WORK --out FILE.md

DATA holds SQuAD and MedQuAD in BEIR layout. WORK keeps the stores, which `benchmarks/hybrid.py` may have made. Each
collection is indexed with MiniLM at the default settings, and its development questions are the gate's, which tunes the
fusion on one half of them, at most 1,000. Then `dpr serve` is started, and asked all of them over HTTP for 100 hits.
Figures are of the questions that nothing was tuned on. Intervals are 95%, from 10,000 bootstrap samples.
"""

import argparse
import json
import subprocess
import sys
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from benchmarks.hybrid import COLLECTIONS, snapshot_of
from dpr.evaluate.metrics import Metrics, judge
from dpr.evaluate.questions import QuestionSet
from dpr.evaluate.rankings import Comparison, Ranking
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


def some_of(ranking: Ranking, places: Sequence[int]) -> Ranking:
    """Return the ranking of some of its questions."""
    judged = tuple(ranking.judged[place] for place in places)
    return replace(ranking, judged=judged, values_QM=ranking.values_QM[list(places)])


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
        snapshot, questions = snapshot_of(given.data / name, given.work / name)
        if snapshot.body.lexical is None:
            raise SystemExit(f"{given.work / name} has no index of words")
        tuned, held_out = split_questions(len(questions.questions), IndexConfig().seed)
        with served(given.work / name) as url:
            rankings = [ask(url, questions, mode) for mode in MODES]
        measured = [some_of(ranking, held_out.tolist()) for ranking in rankings]
        lines += ["", f"## {name}: {snapshot.body.passages:,} passages, {len(held_out):,} questions", ""]
        lines += [f"Tuned on {len(tuned):,} others: {describe(snapshot.body.lexical.hybrid)}.", ""]
        lines += [*table(measured), "", *differences(measured), ""]
        lines += [f"All {len(questions.questions):,} questions, those that were tuned on included:", ""]
        lines += table(rankings)
        print("\n".join(lines), flush=True)
    given.out.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
