"""Parts (c) and (d) of benchmarks/index.py: what our kinds of index find, and how fast, by the product's own search.

Shapes: Q questions, K neighbours, D dimensions.
"""

import json
import math
import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import numpy.typing as npt
from index_build import SEGMENT_ROWS, entries_of
from index_data import Vectors

from dpr.index.candidates import SearchSettings, exact_scores, rescore
from dpr.index.choose import IndexPlan, choose
from dpr.index.coding import build_part
from dpr.index.faiss_file import read_faiss
from dpr.index.kinds import searched
from dpr.index.live_parts import PartRef
from dpr.index.merging import build_whole, merge
from dpr.index.part import write_part
from dpr.index.recall import KnownQuestions
from dpr.index.row_ids import ROW_BITS
from dpr.index.sample import sample_rows
from dpr.index.serving_index import ServingIndex
from dpr.index.shards import open_shard
from dpr.index.training import train
from dpr.index.truth import recall_at
from dpr.index.tune import tune
from dpr.recipe_index import IndexConfig
from dpr.search.segment_set import SegmentSet
from dpr.search.vector_search import VectorSearch
from dpr.store import open_store

K = 20
DIGEST = "0" * 64
"""Stands for the digest of a codebook, which is in no file here: parts and their merge must name the same."""
WARM_UP = 50
MIN_SECONDS = 0.02
NPROBES = (8, 16, 32, 64, 80, 96, 112, 128, 144, 160, 192, 224, 256)
RESCORES = (0, 40, 50, 60, 80, 100, 200)
EF = (20, 32, 48, 64, 96, 128, 192, 256, 384, 512, 1024, 2048)
FEWER_LISTS = "IVF-PQ FastScan, 4 * sqrt(N) lists"
"""As the rule had it until 2026-11-28."""
BY_QUESTION, AVERAGE_LISTS = "IVF-PQ FastScan, lists by question", (48, 64, 72, 80, 88, 96, 112, 128, 144, 160, 192)
"""The product's search as tuned, and how many lists questions visit on average."""
MAX_CODES, LISTS_AT_MOST = "IVF-PQ, FAISS's max_codes", 1_024
CODES = (5_000, 10_000, 20_000, 30_000, 45_000, 60_000, 90_000)
"""FAISS's own early termination: a question visits lists, the nearest first, until it has seen so many codes. FastScan
has none, so the same index is searched without it."""


@dataclass(frozen=True)
class Point:
    """A contender with one setting."""

    contender: str
    setting: str
    recall: float
    """Recall@20."""
    milliseconds: float
    """A question, on average."""
    p99: float


@dataclass(frozen=True)
class Built:
    """An index of ours, open."""

    index: ServingIndex
    segments: SegmentSet
    vectors: Vectors

    def true_ids(self, some: slice) -> npt.NDArray[np.int64]:
        """Exact neighbours as ids of the serving index."""
        return ids_of_rows(self.vectors.true_ids_QK[some])

    def ask(self, settings: SearchSettings, questions_QD: npt.NDArray[np.float32], k: int = K) -> npt.NDArray[np.int64]:
        """Ids (Q, K), one question at a time."""
        search = VectorSearch(self.index, settings, self.segments)
        return np.concatenate([search.top(question_D[None], k)[1] for question_D in questions_QD])


def ids_of_rows(rows: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Ids of the serving index, of rows of the passages."""
    return (rows // SEGMENT_ROWS << ROW_BITS) | rows % SEGMENT_ROWS


def open_segments(store: Path) -> SegmentSet:
    os.environ["DPR_CACHE"] = str(store.parent / "unpacked")
    entries = entries_of(store)
    return SegmentSet.open(open_store(str(store)), entries, None)


def built(factory: str, vectors: Vectors, store: Path, *, packed: bool = True) -> Built:
    """The serving index of a factory, made by the product's functions unless a file holds it already.

    Unless it is to be `packed`, codes of four bits stay as they are in the file, without FastScan.
    """
    plan = choose(IndexConfig(factory=factory), len(vectors.passages_ND), vectors.passages_ND.shape[1])
    file = store.parent / "kinds" / f"{plan.factory.replace(',', '-')}.faiss"
    if not file.exists():
        file.parent.mkdir(exist_ok=True)
        started = time.perf_counter()
        _build(plan, vectors, file)
        print(f"{plan.factory} built in {time.perf_counter() - started:.0f} s", flush=True)
    shard = open_shard(file) if packed else read_faiss(file)
    return Built(ServingIndex([shard]), open_segments(store), vectors)


def _build(plan: IndexPlan, vectors: Vectors, file: Path) -> None:
    passages_ND = vectors.passages_ND
    (drawn,) = sample_rows([len(passages_ND)], max(1, plan.train_rows), 0)
    codebook = train(passages_ND[drawn].astype(np.float32), plan, 0)
    firsts = range(0, len(passages_ND), SEGMENT_ROWS)
    blocks = [np.array(passages_ND[first : first + SEGMENT_ROWS]) for first in firsts]
    making = file.with_suffix(".making")
    if not plan.mergeable:
        build_whole(codebook, [(n, np.arange(len(block)), block) for n, block in enumerate(blocks)], making)
    else:
        parts = []
        for number, block in enumerate(blocks):
            path = file.parent / f"part-{number}"
            write_part(build_part(codebook, block), path, DIGEST)
            parts.append(PartRef(number, path, len(block), np.empty(0, np.uint32), DIGEST))
        merge(codebook, parts, making)
        for part in parts:
            Path(str(part.file)).unlink()
    making.rename(file)


def curve(name: str, index: Built, settings: Sequence[SearchSettings]) -> Iterator[Point]:
    """Each setting, timed one question at a time."""
    for setting in settings:
        average = "" if setting.margin is None else " on average"
        values = f"nprobe {setting.nprobe}{average}, rescored {setting.rescore}"
        search = VectorSearch(index.index, setting, index.segments)
        yield timed(name, values, lambda q, s=search: s.top(q[None], K)[1][0], index)  # type: ignore[misc]


def timed(
    name: str, setting: str, ask: Callable[[npt.NDArray[np.float32]], npt.NDArray[np.int64]], index: Built
) -> Point:
    """One contender with one setting on the test questions."""
    questions_QD = index.vectors.questions_QD[index.vectors.test]
    started = time.thread_time()
    for question_D in questions_QD[:WARM_UP]:
        ask(question_D)
    if time.thread_time() - started > MIN_SECONDS * WARM_UP:  # a hundred are enough of what is slow
        questions_QD = questions_QD[:100]
    found, seconds = [], []
    for question_D in questions_QD:
        started = time.thread_time()  # other work beside it does not count
        found.append(ask(question_D))
        seconds.append(time.thread_time() - started)
    true_QK = index.true_ids(index.vectors.test)[: len(found)]
    return point(name, setting, recall_at(np.array(found), true_QK, K), np.array(seconds))


def point(contender: str, setting: str, recall: float, seconds_Q: npt.NDArray[np.float64]) -> Point:
    milliseconds_Q = 1000 * seconds_Q
    return Point(contender, setting, recall, float(milliseconds_Q.mean()), float(np.percentile(milliseconds_Q, 99)))


def factories(rows: int) -> dict[str, str]:
    """Our kinds, with the lists that the rule gives for so many rows."""
    lists = choose(IndexConfig(), rows, 384).factory.partition(",")[0]
    coded = {"IVF-PQ": "PQ96", "IVF-PQ FastScan": "PQ192x4", "IVF-RaBitQ FastScan": "RaBitQfs", "IVF-SQ8": "SQ8"}
    named = {name: f"{lists},{code}" for name, code in coded.items()}
    again = dict.fromkeys((BY_QUESTION, MAX_CODES), named["IVF-PQ FastScan"])
    fewer = f"IVF{2 ** round(math.log2(4 * math.sqrt(rows)))},PQ192x4"
    return {**named, **again, FEWER_LISTS: fewer, "Flat": "Flat", "HNSW": "HNSW32"}


def kind_points(name: str, vectors: Vectors, store: Path) -> Iterator[Point]:
    """One of our kinds with all settings."""
    index = built(factories(len(vectors.passages_ND))[name], vectors, store, packed=name != MAX_CODES)
    if name == "HNSW":
        for ef in EF:
            searched(index.index.shards[0]).hnsw.efSearch = ef
            yield replace(next(curve(name, index, [SearchSettings(1, 0)])), setting=f"ef {ef}")
    elif name == "Flat":
        yield from curve(name, index, [SearchSettings(1, 0)])
    elif name == BY_QUESTION:
        yield from curve(name, index, by_question(index))
    elif name == MAX_CODES:
        yield from early_points(name, index)
    else:
        grid = [SearchSettings(*pair) for pair in product(NPROBES, RESCORES)]
        yield from curve(name, index, [setting for setting in grid if setting.rescore or "RaBitQ" not in name])


def by_question(index: Built) -> list[SearchSettings]:
    """Margins with which the tuning questions visit some lists on average; none where the lists are fewer."""
    questions_QD = index.vectors.questions_QD[index.vectors.tuning]
    below_N = np.sort(index.index.scores_below(questions_QD, K).reshape(-1))
    averages = [n for n in AVERAGE_LISTS if index.index.first_lists(K) < n < index.index.lists]
    pairs = product(averages, RESCORES[2:])
    return [SearchSettings(n, rescored, K, float(below_N[n * len(questions_QD)])) for n, rescored in pairs]


def early_points(name: str, index: Built) -> Iterator[Point]:
    """FAISS's own search until so many codes were seen; then the product's re-scoring."""
    (shard,) = index.index.shards
    for codes, rescored in product(CODES, RESCORES[2:]):
        parameters = faiss.SearchParametersIVF(nprobe=LISTS_AT_MOST, max_codes=codes)

        def ask(question_D: npt.NDArray[np.float32], k: int = rescored, p: Any = parameters) -> npt.NDArray[np.int64]:
            ids_1C = shard.search(question_D[None], k, params=p)[1]
            return rescore(question_D[None], ids_1C, index.segments.fetching(ids_1C), K)[1][0]

        yield timed(name, f"max_codes {codes:,}, rescored {rescored}", ask, index)


def peer_points(name: str, settings: Sequence[str], folder: Path, vectors: Vectors) -> Iterator[Point]:
    """What a peer wrote."""
    for number, setting in enumerate(settings):
        measured = np.load(folder / f"asked-{number}.npz")
        recall = recall_at(measured["ids"], vectors.true_ids_QK[vectors.test], K)
        yield point(name, setting, recall, measured["seconds"])


@dataclass(frozen=True)
class Accuracy:
    """A row of part (d)."""

    what: str
    nprobe: int
    rescore: int
    top20: float
    """Share of questions whose passage is among the first 20."""


def compression(vectors: Vectors, store: Path) -> tuple[str, list[Accuracy]]:
    """Top-20 accuracy on all development questions: exact, and by IVF-PQ at 16 times less."""
    index = built("auto", vectors, store)
    answer_Q = ids_of_rows(vectors.answer_Q)
    lists = index.index.lists
    config = IndexConfig()

    def row(what: str, settings: SearchSettings) -> Accuracy:
        found_QK = VectorSearch(index.index, settings, index.segments).top(vectors.questions_QD, K)[1]
        share = float((found_QK == answer_Q[:, None]).any(axis=1).mean())
        return Accuracy(what, settings.nprobe, settings.rescore, share)

    search = VectorSearch(index.index, SearchSettings(1, 0), index.segments)
    exact = float((search.exact(vectors.questions_QD, K)[1] == answer_Q[:, None]).any(axis=1).mean())
    rows = [Accuracy("exact", 0, 0, exact), row("all lists", SearchSettings(lists, 0))]
    rows += [row("all lists", SearchSettings(lists, rescore)) for rescore in (50, 100, 200)]
    questions_QD, true_QK = vectors.questions_QD[vectors.tuning], index.true_ids(vectors.tuning)
    true_scores_QK = exact_scores(questions_QD, true_QK, index.segments.vectors)
    known = KnownQuestions(questions_QD, true_scores_QK, true_QK, index.segments.fetching)
    for target in (0.98, 0.995):
        wanted = config.model_copy(update={"recall_target": target})
        chosen = tune(index.index, known, wanted, K)
        rows.append(row(f"tuned to recall@20 {target}", chosen.settings))
    plan = choose(config, len(vectors.passages_ND), vectors.passages_ND.shape[1])
    return plan.factory, rows


def write_points(points: Sequence[Point], file: Path) -> None:
    file.write_text(json.dumps([vars(one) for one in points]), encoding="utf-8")
