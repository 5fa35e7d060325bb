"""Loose rows are compared one by one: against brute force.

Shapes: Q questions, K hits, N rows, D dimensions.
"""

import numpy as np
import numpy.typing as npt
import pytest

from dpr.index.choose import choose
from dpr.index.cost import search_cost
from dpr.index.loose_index import LooseIndex, max_far, max_new
from dpr.index.serving_index import ServingIndex
from dpr.index.training import train
from dpr.recipe_index import IndexConfig


def test_loose_rows_are_found_as_by_brute_force(
    vectors_ND: npt.NDArray[np.float16], questions_QD: npt.NDArray[np.float32]
) -> None:
    ids_N = np.arange(1500) * 7 + (3 << 32)
    index = LooseIndex(ids_N, vectors_ND)
    assert len(index) == 1500
    exact_QN = questions_QD @ vectors_ND.astype(np.float32).T
    scores_QK, ids_QK = index.search(questions_QD, 20)
    expected_QK = -np.sort(-exact_QN, axis=1)[:, :20]
    np.testing.assert_allclose(scores_QK, expected_QK, rtol=1e-5, atol=1e-6)
    rows_QK = (ids_QK - (3 << 32)) // 7
    np.testing.assert_allclose(np.take_along_axis(exact_QN, rows_QK, axis=1), expected_QK, rtol=1e-5, atol=1e-6)


def test_an_index_with_loose_rows_finds_them_whatever_lists_it_visits(
    vectors_ND: npt.NDArray[np.float16], questions_QD: npt.NDArray[np.float32]
) -> None:
    whole_ND = vectors_ND.astype(np.float32)
    codebook = train(whole_ND, choose(IndexConfig(factory="IVF16,Flat"), 1500, 16), seed=1)
    codebook.add_with_ids(whole_ND[:1400], np.arange(1400))
    lone = ServingIndex([codebook])
    index = ServingIndex([codebook], loose=LooseIndex(np.arange(1400, 1500), vectors_ND[1400:]))
    scores_QK, ids_QK = index.search(questions_QD, 20, 1)
    _, lone_ids_QK = lone.search(questions_QD, 1400, 1)
    exact_QN = questions_QD @ whole_ND.T
    for question in range(len(questions_QD)):
        visited = [*lone_ids_QK[question][lone_ids_QK[question] >= 0], *range(1400, 1500)]
        best = sorted(exact_QN[question][visited], reverse=True)[:20]
        assert scores_QK[question] == pytest.approx(best, rel=1e-5)
        assert exact_QN[question][ids_QK[question]] == pytest.approx(best, rel=1e-5)
    assert (ids_QK >= 1400).any()
    cost = search_cost(index)
    more_ms = cost.milliseconds(index, 1, 0) - cost.milliseconds(lone, 1, 0)
    assert more_ms == pytest.approx(100 * cost.loose_ns * 1e-6)


@pytest.mark.parametrize("margin", [None, 10.0])
def test_of_loose_rows_only_as_many_as_hits_are_candidates(
    vectors_ND: npt.NDArray[np.float16], questions_QD: npt.NDArray[np.float32], margin: float | None
) -> None:
    whole_ND = vectors_ND.astype(np.float32)
    codebook = train(whole_ND, choose(IndexConfig(factory="IVF16,Flat"), 1500, 16), seed=1)
    codebook.add_with_ids(whole_ND[:1000], np.arange(1000))
    index = ServingIndex([codebook], loose=LooseIndex(np.arange(1000, 1500), vectors_ND[1000:]))
    _, ids_QC = index.search(questions_QD, 60, 16, margin, at=4, hits=5)
    exact_QN = questions_QD @ whole_ND.T
    for exact_N, ids_C in zip(exact_QN, ids_QC, strict=True):
        loose = 1000 + np.argsort(-exact_N[1000:])[:5]
        candidates = np.concatenate([np.arange(1000), loose])
        best = candidates[np.argsort(-exact_N[candidates])][:60]
        assert set(ids_C.tolist()) == set(best.tolist())
        assert (ids_C[:5] == np.argsort(-exact_N)[:5]).all()


@pytest.mark.parametrize(("rows", "far", "new"), [(1_000, 7, 431), (11_529, 26, 507), (21_000_000, 1145, 4982)])
def test_few_rows_may_be_loose(rows: int, far: int, new: int) -> None:
    assert (max_far(rows), max_new(rows)) == (far, new)
