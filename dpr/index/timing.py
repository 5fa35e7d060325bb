"""Measuring the cost of a question, in an index that is open on this machine.

Predictions (`dpr.index.cost`) hold for one processor. Where a recipe bounds the time of a question, what counts is the
time here. So it is measured, on some of the questions that settings are chosen on, for each number of lists, the fewest
first, until a question takes longer than the bound.

Time is CPU time of one thread, so other work on the machine and the way to a remote store count little.

Shapes: Q questions, P numbers of lists, C candidates.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from dpr.index.candidates import rescore
from dpr.index.hardware import faiss_threads
from dpr.index.recall import KnownQuestions
from dpr.index.serving_index import ServingIndex

TIMED_QUESTIONS, ROUNDS = 32, 2
"""Questions that are timed, and how often; of each, the shorter time counts."""

Milliseconds = npt.NDArray[np.float64]
Margins = Callable[[int], float | None]
"""Returns the margin with which questions visit this many lists on average; None: all visit equally many."""


@dataclass(frozen=True)
class MeasuredCost:
    """Measured times of questions, and interpolated ones in between."""

    at: int
    """Hits, and so the fewest candidates of a search."""
    nprobes: npt.NDArray[np.int64]
    """Numbers of lists (P,), ascending."""
    most: int
    """The most candidates."""
    few_P: Milliseconds
    """Searching for `at` candidates."""
    many_P: Milliseconds
    """Searching for `most` candidates."""
    rescore_few: float
    """Re-scoring `at` candidates."""
    rescore_many: float

    def milliseconds(self, _: ServingIndex, nprobe: int, candidates: int) -> float:
        """Return the time of one question that visits `nprobe` lists and re-scores `candidates`."""
        share = (max(candidates, self.at) - self.at) / max(1, self.most - self.at)
        few, many = (self._within(nprobe, each_P) for each_P in (self.few_P, self.many_P))
        found = few + share * (many - few)
        rescoring = self.rescore_few + share * (self.rescore_many - self.rescore_few)
        return found + (rescoring * min(1.0, candidates / self.at))

    def _within(self, nprobe: int, each_P: Milliseconds) -> float:
        last = int(self.nprobes[-1])
        beyond = max(1.0, nprobe / last)  # for more lists than were timed
        return float(np.interp(nprobe, self.nprobes, each_P)) * beyond


def measure_cost(
    index: ServingIndex,
    known: KnownQuestions,
    at: int,
    settings: tuple[Sequence[int], int],
    margin: Margins,
    max_ms: float,
) -> MeasuredCost:
    """Time searches for `at` hits with some numbers of lists, ascending, up to the first that exceeds `max_ms`.

    `settings`: the numbers of lists, and the most candidates.
    """
    nprobes, most = settings
    most = max(at, most)
    questions_QD = known.vectors_QD[:TIMED_QUESTIONS]
    timed: list[tuple[int, float, float]] = []

    def searching(k: int, nprobe: int) -> float:
        settled = margin(nprobe)
        return _mean_ms(
            lambda question: index.search(questions_QD[question, None], k, nprobe, settled, at, hits=at),
            len(questions_QD),
        )

    with faiss_threads(1):
        for nprobe in nprobes:
            timed.append((nprobe, searching(at, nprobe), searching(most, nprobe)))
            if timed[-1][1] > max_ms:
                break
        _, ids_QC = index.search(questions_QD, most, timed[-1][0], None, at, hits=at)
        fetch = known.fetching(ids_QC)

        def rescoring(width: int) -> float:
            few_QC = ids_QC[:, :width]
            return _mean_ms(lambda q: rescore(questions_QD[q, None], few_QC[q, None], fetch, at), len(questions_QD))

        rescore_few, rescore_many = rescoring(at), rescoring(most)
    numbers, few, many = zip(*timed, strict=True)
    return MeasuredCost(
        at=at,
        nprobes=np.array(numbers),
        most=most,
        few_P=np.maximum.accumulate(np.array(few)),  # a chance delay must not make more lists look cheaper
        many_P=np.maximum.accumulate(np.array(many)),
        rescore_few=rescore_few,
        rescore_many=rescore_many,
    )


def _mean_ms(ask: Callable[[int], object], questions: int) -> float:
    """Return the mean over questions of the shortest time of each, in milliseconds; once more before, to warm up."""
    shortest_Q = np.full(questions, np.inf)
    for timed in (False, *[True] * ROUNDS):
        for question in range(questions):
            started = time.thread_time()
            ask(question)
            if timed:
                shortest_Q[question] = min(shortest_Q[question], time.thread_time() - started)
    return 1e3 * float(shortest_Q.mean())
