"""Choosing how the index is searched: the cheapest settings that keep the promised recall on real questions.

Cost is predicted (`dpr.index.cost`), never timed, so the same inputs give the same settings.

Shapes: Q questions, K neighbours, C candidates, D dimensions.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from dpr.index.candidates import SearchSettings
from dpr.index.cost import search_cost
from dpr.index.shards import ServingIndex
from dpr.index.truth import Ids, Scores, recalls_at
from dpr.recipe import IndexConfig

RECALL_AT = 20
RESCORE_GRID = (0, 20, 50, 100, 200, 500, 1000)
LEAST_GAIN = 0.001
"""Visiting twice the lists for less recall than this, at the most candidates, ends a search that missed the target."""


@dataclass(frozen=True)
class TunePoint:
    """Settings and what they give."""

    nprobe: int
    rescore: int
    recall: float
    """Recall@20 against exact search."""
    predicted_ms: float
    """Milliseconds for one question on one thread, by the model of `dpr.index.cost`."""


@dataclass(frozen=True)
class Tuned:
    """The settings chosen, and all that were measured."""

    settings: SearchSettings
    recall: float
    predicted_ms: float
    meets_target: bool
    """False: nothing that `latency_ms` leaves room for reaches `recall_target`; these settings come nearest."""
    meets_latency: bool
    """False: even the cheapest settings take longer than `latency_ms`, and these are they."""
    curve: list[TunePoint]


def tune(index: ServingIndex, questions_QD: Scores, true_ids_QK: Ids, config: IndexConfig) -> Tuned:
    """The cheapest `nprobe` and `rescore` whose recall@20 on the questions is at least `config.recall_target`.

    Settings that take longer than `config.latency_ms` are out; if no other reaches the target, the best recall within
    it is chosen. `true_ids_QK` is the exact answer, K at least 20 where there are as many vectors. A setting that the
    recipe fixes is left as it is.
    """
    rescores = RESCORE_GRID if config.rescore is None else (config.rescore,)
    bound, cost = config.latency_ms or math.inf, search_cost(index)
    curve: list[TunePoint] = []
    enough, best_recall = bound, -1.0
    for nprobe in _nprobes(index) if config.nprobe is None else [config.nprobe]:
        if curve and cost.milliseconds(index, nprobe, min(rescores)) > enough:
            break
        points = _measure(index, questions_QD, true_ids_QK, (nprobe, rescores))
        curve += points
        within = [point for point in curve if point.predicted_ms <= bound]
        reaching = [point.predicted_ms for point in within if point.recall >= config.recall_target]
        enough = min(reaching, default=bound)
        recall = max(point.recall for point in points)
        if not reaching and recall < best_recall + LEAST_GAIN:
            break
        best_recall = max(recall, best_recall)
    return _choose(curve, bound, config.recall_target)


def said(tuned: Tuned, config: IndexConfig) -> str:
    """The choice in one sentence, with what could not be met."""
    settings = f"nprobe {tuned.settings.nprobe} and rescore {tuned.settings.rescore}"
    took = f"recall@{RECALL_AT} {tuned.recall:.4f} at a predicted {tuned.predicted_ms:.3g} ms"
    if not tuned.meets_latency:
        return f"{settings} are the cheapest, {took}, and still above latency_ms {config.latency_ms:g}"
    if tuned.meets_target:
        return f"{settings} are the cheapest that reach recall_target {config.recall_target:g}: {took}"
    within = "" if config.latency_ms is None else f" within latency_ms {config.latency_ms:g}"
    return f"{settings} give the best recall{within}, {took}, and miss recall_target {config.recall_target:g}"


def _choose(curve: list[TunePoint], bound: float, target: float) -> Tuned:
    within = [point for point in curve if point.predicted_ms <= bound]
    reaching = [point for point in within if point.recall >= target]
    if reaching or not within:
        chosen = min(reaching or curve, key=lambda point: point.predicted_ms)
    else:
        chosen = min(within, key=lambda point: (-point.recall, point.predicted_ms))
    settings = SearchSettings(chosen.nprobe, chosen.rescore)
    return Tuned(settings, chosen.recall, chosen.predicted_ms, bool(reaching), bool(within), curve)


def _measure(
    index: ServingIndex, questions_QD: Scores, true_ids_QK: Ids, grid: tuple[int, Sequence[int]]
) -> list[TunePoint]:
    # One search with most candidates serves all numbers of candidates: the best C are a prefix of the best 2C. And
    # nothing is re-scored: among candidates with exact scores, a true neighbour always comes first.
    nprobe, rescores = grid
    _, ids_QC = index.search(questions_QD, max(RECALL_AT, *rescores), nprobe)
    recalls = recalls_at(ids_QC, true_ids_QK[:, :RECALL_AT], [max(RECALL_AT, rescore) for rescore in rescores])
    predicted = search_cost(index)
    return [
        TunePoint(nprobe, rescore, recall, predicted.milliseconds(index, nprobe, rescore))
        for rescore, recall in zip(rescores, recalls, strict=True)
    ]


def _nprobes(index: ServingIndex) -> list[int]:
    """Powers of two up to the number of lists, and that number."""
    lists = max(1, index.lists)
    return sorted({lists, *(2**power for power in range(lists.bit_length()))})
