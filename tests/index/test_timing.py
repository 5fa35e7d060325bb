"""Measuring the time of a question, with a clock that only searches advance.

Shapes: Q questions, C candidates, N rows, D dimensions.
"""

from typing import Any

import faiss
import numpy as np
import numpy.typing as npt
import pytest

from dpr.index.recall import KnownQuestions
from dpr.index.serving_index import ServingIndex
from dpr.index.timing import measure_cost
from dpr.index.truth import exact_topk
from dpr.index.tune import Stop, tune
from dpr.index.tuned_sentence import describe
from dpr.recipe_index import IndexConfig

Vectors = npt.NDArray[np.float16]
Questions = npt.NDArray[np.float32]
AT, CANDIDATES = 20, 100


class Clock:
    """CPU time that passes only when a test advances it."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def __call__(self) -> float:
        return self.seconds

    def spend(self, milliseconds: float) -> None:
        self.seconds += 1e-3 * milliseconds


def searching_ms(nprobe: int, candidates: int) -> float:
    return 0.1 + 0.01 * nprobe + 0.0005 * candidates


def rescoring_ms(candidates: int) -> float:
    return 0.05 + 0.002 * candidates


class Slow(ServingIndex):
    """An index whose searches take as long as a formula gives."""

    def __init__(self, index: faiss.Index, clock: Clock) -> None:
        super().__init__([index])
        self.clock, self.nprobes = clock, set[int]()

    def search(self, questions_QD: Questions, k: int, nprobe: int, *rest: Any, **options: Any) -> tuple[Any, Any]:
        """Search as the index does, and advance the clock."""
        if len(questions_QD) == 1:
            self.nprobes.add(nprobe)
            self.clock.spend(searching_ms(nprobe, k))
        return super().search(questions_QD, k, nprobe, *rest, **options)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr("dpr.index.timing.time.thread_time", clock)
    return clock


@pytest.fixture
def index(vectors_ND: Vectors, clock: Clock) -> Slow:
    lists = faiss.index_factory(16, "IVF20,Flat", faiss.METRIC_INNER_PRODUCT)
    lists.train(vectors_ND.astype(np.float32))
    lists.add(vectors_ND.astype(np.float32))
    return Slow(lists, clock)


@pytest.fixture
def known(vectors_ND: Vectors, questions_QD: Questions, clock: Clock) -> KnownQuestions:
    """Return questions whose candidates take their time to be fetched."""
    truth = exact_topk(questions_QD, [(np.arange(len(vectors_ND)), vectors_ND)], AT)

    def fetch(ids_N: npt.NDArray[np.int64]) -> Vectors:
        clock.spend(rescoring_ms(len(ids_N)))
        return vectors_ND[ids_N]

    return KnownQuestions(questions_QD, *truth, lambda _: fetch)


@pytest.mark.parametrize(("nprobe", "candidates"), [(1, 0), (4, 20), (6, 0), (8, 60), (16, 100), (12, 44), (3, 20)])
def test_times_are_those_of_the_machine(nprobe: int, candidates: int, index: Slow, known: KnownQuestions) -> None:
    cost = measure_cost(index, known, AT, ([1, 4, 8, 16], CANDIDATES), lambda _: None, np.inf)
    expected = searching_ms(nprobe, max(AT, candidates)) + (rescoring_ms(candidates) if candidates else 0)
    assert cost.milliseconds(index, nprobe, candidates) == pytest.approx(expected)


def test_no_more_lists_are_timed_than_the_bound_allows(index: Slow, known: KnownQuestions) -> None:
    bound = searching_ms(4, AT) - 0.01
    cost = measure_cost(index, known, AT, ([1, 2, 4, 8, 16], CANDIDATES), lambda _: None, bound)
    assert index.nprobes == {1, 2, 4}
    assert cost.milliseconds(index, 8, 0) >= cost.milliseconds(index, 4, 0) > bound


def test_a_machine_that_slows_down_makes_no_larger_search_cheaper(
    index: Slow, known: KnownQuestions, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tests.index.test_timing.searching_ms", lambda nprobe, _: 1.0 / nprobe)
    cost = measure_cost(index, known, AT, ([1, 2, 4], CANDIDATES), lambda _: None, np.inf)
    assert [cost.milliseconds(index, nprobe, 0) for nprobe in (1, 2, 4)] == pytest.approx([1.0, 1.0, 1.0])


def test_a_bound_on_time_is_kept_as_measured(index: Slow, known: KnownQuestions) -> None:
    """The constants of another processor would let more lists pass, or fewer."""
    bound = searching_ms(8, AT) + 1e-6
    config = IndexConfig(recall_target=1.0, rescore=0, latency_ms=bound)
    tuned = tune(index, known, config, AT, timed=True)
    assert {point.nprobe for point in tuned.curve} == {1, 2, 4, 8}
    assert (tuned.stop, tuned.meets_latency, tuned.settings.nprobe) == (Stop.LATENCY, True, 8)
    for point in tuned.curve:
        assert point.predicted_ms == pytest.approx(searching_ms(point.nprobe, AT))
    assert f"at a measured {tuned.predicted_ms:.3g} ms" in describe(tuned, config)
    predicted = tune(index, known, config, AT)
    assert "at a predicted " in describe(predicted, config)
    assert predicted.settings.nprobe != 8
