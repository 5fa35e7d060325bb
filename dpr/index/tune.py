"""Choosing how the index is searched: the cheapest settings that keep the promised recall on real questions.

Cost is counted, never timed, so the same inputs give the same settings: one for each vector that is compared, coarse
centroids and the vectors of the lists visited, and `RESCORE_COST` for each candidate that is re-scored.

Shapes: Q questions, K neighbours, C candidates, D dimensions.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import faiss

from dpr.index.kinds import inverted
from dpr.index.search import SearchSettings, search
from dpr.index.truth import Ids, Scores, recalls_at
from dpr.recipe import IndexConfig

RECALL_AT = 20
RESCORE_GRID = (0, 20, 50, 100, 200, 500, 1000)
RESCORE_COST = 20.0
LEAST_GAIN = 0.001
"""Visiting twice the lists for less recall than this, at the most candidates, ends a search that missed the target."""


@dataclass(frozen=True)
class TunePoint:
    """Settings and what they give."""

    nprobe: int
    rescore: int
    recall: float
    """Recall@20 against exact search."""
    cost: float
    """Comparisons per question."""


@dataclass(frozen=True)
class Tuned:
    """The settings chosen, and all that were measured."""

    settings: SearchSettings
    recall: float
    cost: float
    meets_target: bool
    """False: nothing tried reaches the target, and these settings come nearest."""
    curve: list[TunePoint]


def tune(index: faiss.Index, questions_QD: Scores, true_ids_QK: Ids, config: IndexConfig) -> Tuned:
    """The cheapest `nprobe` and `rescore` whose recall@20 on the questions is at least `config.recall_target`.

    `true_ids_QK` is the exact answer, K at least 20 where there are as many vectors. A setting that the recipe fixes is
    left as it is.
    """
    rescores = RESCORE_GRID if config.rescore is None else (config.rescore,)
    curve: list[TunePoint] = []
    cheapest, best_recall = math.inf, -1.0
    for nprobe in _nprobes(index) if config.nprobe is None else [config.nprobe]:
        if _scanned(index, nprobe) >= cheapest:
            break
        points = _measure(index, questions_QD, true_ids_QK, (nprobe, rescores))
        curve += points
        cheapest = min((point.cost for point in curve if point.recall >= config.recall_target), default=math.inf)
        recall = max(point.recall for point in points)
        if cheapest == math.inf and recall < best_recall + LEAST_GAIN:
            break
        best_recall = max(recall, best_recall)
    reaching = [point for point in curve if point.recall >= config.recall_target]
    chosen = min(reaching or curve, key=lambda point: (0.0 if reaching else -point.recall, point.cost))
    return Tuned(SearchSettings(chosen.nprobe, chosen.rescore), chosen.recall, chosen.cost, bool(reaching), curve)


def _measure(
    index: faiss.Index, questions_QD: Scores, true_ids_QK: Ids, grid: tuple[int, Sequence[int]]
) -> list[TunePoint]:
    # One search with most candidates serves all numbers of candidates: the best C are a prefix of the best 2C. And
    # nothing is re-scored: among candidates with exact scores, a true neighbour always comes first.
    nprobe, rescores = grid
    _, ids_QC = search(index, questions_QD, max(RECALL_AT, *rescores), nprobe)
    recalls = recalls_at(ids_QC, true_ids_QK[:, :RECALL_AT], [max(RECALL_AT, rescore) for rescore in rescores])
    scanned = _scanned(index, nprobe)
    return [
        TunePoint(nprobe, rescore, recall, scanned + RESCORE_COST * rescore)
        for rescore, recall in zip(rescores, recalls, strict=True)
    ]


def _nprobes(index: faiss.Index) -> list[int]:
    """Powers of two up to the number of lists, and that number."""
    ivf = inverted(index)
    lists = 1 if ivf is None else int(ivf.nlist)
    return sorted({lists, *(2**power for power in range(lists.bit_length()))})


def _scanned(index: faiss.Index, nprobe: int) -> float:
    """Vectors and centroids compared per question, if questions fall into lists as vectors do."""
    ivf = inverted(index)
    if ivf is None or not index.ntotal:
        return float(index.ntotal)
    visited = nprobe * index.ntotal / ivf.nlist * ivf.invlists.imbalance_factor()
    return float(ivf.nlist + min(visited, index.ntotal))
