"""Choosing how the index is searched: the cheapest settings that keep the promised recall on real questions.

Settings are tried in the order of their cost. It is predicted (`dpr.index.cost`), so the same inputs give the same
settings. Only where `latency_ms` bounds the time of a question, it is measured on this machine (`dpr.index.timing`).

Shapes: Q questions, C candidates.
"""

import enum
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from dpr.formats.records import Document
from dpr.index.candidates import SearchSettings
from dpr.index.cost import SearchCost, search_cost
from dpr.index.recall import KnownQuestions
from dpr.index.serving_index import ServingIndex
from dpr.index.timing import MeasuredCost, measure_cost
from dpr.index.truth import Scores
from dpr.recipe_index import IndexConfig

RESCORE_TIMES, MAX_RESCORE = (0, 1, 2.5, 5, 10, 25, 50), 1_000
"""Candidates that are re-scored: multiples of the hits that settings are tuned for, and the most of them after 2.5."""
MIN_EF = 16
"""The fewest candidates that the search of a graph keeps."""
MARGIN_FROM_LISTS = 2_048
"""With fewer lists (an index of less than about 260,000 vectors), every question visits as many: ranking lists and
calling FAISS twice would take longer than comparing the vectors that it saves."""
MIN_GAIN, MIN_SHARE = 0.001, 0.1
"""Tuning stops if visiting twice the lists, with the most candidates, gains less recall than this, and closes less than
this share of the gap between recall and target."""


class TunePoint(Document):
    """Settings, with their recall and time."""

    nprobe: int
    margin: float | None
    rescore: int
    recall: float
    """Against exact search, of as many neighbours as settings are tuned for."""
    predicted_ms: float
    """Milliseconds for one question on one thread, by the model of `dpr.index.cost` or as measured."""


class Stop(enum.Enum):
    """Why no further settings were tried."""

    TARGET = "all others cost more"
    LATENCY = "all others take longer than latency_ms"
    GAIN = f"twice the lists gained less than {MIN_GAIN} of recall"
    ALL = "there are no others"


@dataclass(frozen=True)
class Tuned:
    """The settings chosen, and all that were measured."""

    settings: SearchSettings
    recall: float
    predicted_ms: float
    meets_target: bool
    """False: nothing that `latency_ms` leaves room for reaches `recall_target`; these settings come nearest."""
    meets_latency: bool
    """False: even the cheapest settings, which are chosen then, take longer than `latency_ms`."""
    stop: Stop
    curve: list[TunePoint]
    """By predicted cost."""
    timed: bool = False
    """Whether times were measured on this machine, not predicted."""


def tune(
    index: ServingIndex,
    known: KnownQuestions,
    config: IndexConfig,
    at: int,
    min_nprobe: int = 1,
    *,
    timed: bool = False,
) -> Tuned:
    """Find the cheapest `nprobe` and `rescore` whose recall@`at` on the questions is at least `config.recall_target`.

    Settings that take longer than `config.latency_ms` are out; if no other reaches the target, the best recall within
    it is chosen. At least `at` neighbours are known where there are as many vectors. A setting that the recipe fixes is
    left as it is. Fewer lists than `min_nprobe` are not tried. With `timed`, times are measured, not predicted.
    """
    trial = _Trial(index, known, config, at, min_nprobe)
    if timed:
        trial.measure_cost()
    stop = trial.run()
    points = sorted(trial.points, key=lambda point: (point.predicted_ms, point.nprobe, point.rescore))
    within = [point for point in points if point.predicted_ms <= trial.max_ms]
    reaching = [point for point in within if point.recall >= config.recall_target]
    # of equal recall, the first is the cheapest
    best = max(within or points[:1], key=lambda point: point.recall)
    chosen = reaching[0] if reaching else best
    settings = SearchSettings(chosen.nprobe, chosen.rescore, at, chosen.margin)
    return Tuned(settings, chosen.recall, chosen.predicted_ms, bool(reaching), bool(within), stop, points, timed)


class _Trial:
    """Measures settings, the cheapest first, until the target is met or more cannot help."""

    def __init__(
        self, index: ServingIndex, known: KnownQuestions, config: IndexConfig, at: int, min_nprobe: int
    ) -> None:
        self._index, self._known, self._config = index, known, config
        self._at, self._min_nprobe = at, min_nprobe
        self._rescores = _rescores(at) if config.rescore is None else [config.rescore]
        self._cost: SearchCost | MeasuredCost = search_cost(index)
        self._measured: dict[int, list[TunePoint]] = {}
        self.max_ms = math.inf if config.latency_ms is None else config.latency_ms

    def measure_cost(self) -> None:
        """Measure times on this machine, which take the place of predictions."""
        settings = self._nprobes(), max(self._rescores)
        self._cost = measure_cost(self._index, self._known, self._at, settings, self._margin, self.max_ms)

    @property
    def points(self) -> list[TunePoint]:
        """Return all measured settings."""
        return [point for points in self._measured.values() for point in points]

    def run(self) -> Stop:
        """Measure settings, and return why no more were measured."""
        for predicted_ms, nprobe, rescore in sorted(self._settings()):
            if self._measured and predicted_ms > self.max_ms:
                return Stop.LATENCY
            if nprobe not in self._measured:
                if self._gain_is_small():
                    return Stop.GAIN
                self._measured[nprobe] = self._measure(nprobe)
            (point,) = (point for point in self._measured[nprobe] if point.rescore == rescore)
            if self._reaches(point):
                self._try_between(nprobe)
                return Stop.TARGET
        return Stop.ALL

    def _try_between(self, nprobe: int) -> None:
        """Measure the number of lists halfway between the last that missed the target and the one that reaches it."""
        if self._config.nprobe is None and nprobe >= 4 and nprobe // 2 in self._measured:
            self._measured[3 * nprobe // 4] = self._measure(3 * nprobe // 4)

    def _settings(self) -> Iterator[tuple[float, int, int]]:
        """Yield predicted cost, nprobe and rescore of all settings there are to try."""
        for nprobe in self._nprobes():
            for rescore in self._rescores:
                yield self._cost.milliseconds(self._index, nprobe, rescore), nprobe, rescore

    def _nprobes(self) -> list[int]:
        """Return the numbers of lists to try, ascending."""
        nprobes = [self._config.nprobe] if self._config.nprobe is not None else _nprobes(self._index)
        return [nprobe for nprobe in nprobes if nprobe >= self._min_nprobe] or nprobes[-1:]

    def _gain_is_small(self) -> bool:
        """Return whether the last doubling of the lists gained too little, and no settings reach the target."""
        recalls = [max(point.recall for point in points) for points in self._measured.values()]
        if len(recalls) < 2 or any(self._reaches(point) for point in self.points):
            return False
        before = max(recalls[:-1])
        return recalls[-1] - before < min(MIN_GAIN, MIN_SHARE * (self._config.recall_target - before))

    def _reaches(self, point: TunePoint) -> bool:
        return point.recall >= self._config.recall_target and point.predicted_ms <= self.max_ms

    def _measure(self, nprobe: int) -> list[TunePoint]:
        """Measure all numbers of candidates with `nprobe` lists.

        One search with the most candidates serves all: the best C are the first of the best 2C. Only a graph is
        searched for each number, since FAISS keeps at least as many candidates as are asked for. And nothing is
        re-scored: among candidates with exact scores, a true neighbour always comes first.
        """
        depths = [max(self._at, rescore) for rescore in self._rescores]
        margin = self._margin(nprobe)
        if self._index.is_graph:
            recalls = [self._recalls(nprobe, None, [depth])[0] for depth in depths]
        else:
            recalls = self._recalls(nprobe, margin, depths)
        return [
            TunePoint(
                nprobe=nprobe,
                margin=margin,
                rescore=rescore,
                recall=recall,
                predicted_ms=self._cost.milliseconds(self._index, nprobe, rescore),
            )
            for rescore, recall in zip(self._rescores, recalls, strict=True)
        ]

    def _margin(self, nprobe: int) -> float | None:
        """Return the margin with which the questions visit `nprobe` lists on average.

        None for a number that the recipe names, in a small index, for all lists that hold vectors, and for no more
        lists than every question visits first.
        """
        lists = self._index.lists
        if self._config.nprobe is not None or lists < MARGIN_FROM_LISTS:
            return None
        if not self._index.first_lists(self._at) < nprobe < lists:
            return None
        margin = float(self._below_N[nprobe * len(self._known.vectors_QD)])
        return margin if math.isfinite(margin) else None

    @cached_property
    def _below_N(self) -> Scores:
        """Return how far lists are below what questions find first, for all lists and questions, ascending."""
        return np.sort(self._index.scores_below(self._known.vectors_QD, self._at).reshape(-1))

    def _recalls(self, nprobe: int, margin: float | None, depths: Sequence[int]) -> list[float]:
        """Return the recall among the first candidates, for each of some numbers of candidates."""
        _, ids_QC = self._index.search(self._known.vectors_QD, max(depths), nprobe, margin, self._at, hits=self._at)
        return self._known.recalls(ids_QC, self._at, depths)


def _rescores(at: int) -> list[int]:
    """Return the numbers of candidates to try for `at` hits."""
    most = max(MAX_RESCORE, int(2.5 * at))
    return [int(times * at) for times in RESCORE_TIMES if times * at <= most]


def _nprobes(index: ServingIndex) -> list[int]:
    """Return the powers of two up to the number of lists, and that number; in a graph, up to the number of vectors."""
    if index.is_graph:
        return [MIN_EF * 2**power for power in range(max(1, (index.rows // MIN_EF).bit_length()))]
    lists = max(1, index.lists)
    return sorted({lists, *(2**power for power in range(lists.bit_length()))})
