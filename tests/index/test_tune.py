"""Tuning, against trying every point by hand."""

import itertools

import faiss
import numpy as np
import numpy.typing as npt
import pytest

from dpr.index.choose import choose
from dpr.index.search import SearchSettings, rescore, search
from dpr.index.train import train
from dpr.index.truth import exact_topk
from dpr.index.tune import RESCORE_COST, RESCORE_GRID, Tuned, tune
from dpr.recipe import IndexConfig

Vectors = npt.NDArray[np.float16]
Questions = npt.NDArray[np.float32]
Ids = npt.NDArray[np.int64]


@pytest.fixture(scope="module")
def index(vectors_ND: Vectors) -> faiss.Index:
    filled = train(vectors_ND.astype(np.float32), choose(IndexConfig(factory="IVF20,PQ8x6"), 1500, 16), seed=1)
    filled.add(vectors_ND.astype(np.float32))
    return filled


@pytest.fixture(scope="module", name="true_ids_QK")
def exact_answer(vectors_ND: Vectors, questions_QD: Questions) -> Ids:
    return exact_topk(questions_QD, [(np.arange(1500), vectors_ND)], 20)[1]


def by_hand(index: faiss.Index, setting: tuple[int, int], questions_QD: Questions, truth: tuple[Vectors, Ids]) -> tuple:  # type: ignore[type-arg]
    """Recall and cost of one point, as a service with these settings would have them."""
    nprobe, candidates = setting
    vectors_ND, true_ids_QK = truth
    _, found_QK = search(index, questions_QD, max(20, candidates), nprobe)
    if candidates:
        _, found_QK = rescore(questions_QD, found_QK, lambda ids: vectors_ND[ids], 20)
    hits = [
        len(set(found[:20].tolist()) & set(true.tolist())) for found, true in zip(found_QK, true_ids_QK, strict=True)
    ]
    sizes = np.array([index.invlists.list_size(number) for number in range(index.nlist)])
    visited = min(nprobe * np.square(sizes).sum() / sizes.sum(), sizes.sum())
    return sum(hits) / (20 * len(hits)), index.nlist + visited + RESCORE_COST * candidates


@pytest.mark.parametrize("target", [0.5, 0.9, 0.98])
def test_the_cheapest_point_that_reaches_the_target_is_chosen(
    target: float, index: faiss.Index, vectors_ND: Vectors, questions_QD: Questions, true_ids_QK: Ids
) -> None:
    tuned = tune(index, questions_QD, true_ids_QK, IndexConfig(recall_target=target))
    points = {
        setting: by_hand(index, setting, questions_QD, (vectors_ND, true_ids_QK))
        for setting in itertools.product([1, 2, 4, 8, 16, 20], RESCORE_GRID)
    }
    cheapest = min((cost, setting) for setting, (recall, cost) in points.items() if recall >= target)
    assert tuned.meets_target
    assert (tuned.settings.nprobe, tuned.settings.rescore) == cheapest[1]
    for point in tuned.curve:
        assert (point.recall, point.cost) == pytest.approx(points[point.nprobe, point.rescore])


def test_a_target_out_of_reach_is_said(index: faiss.Index, questions_QD: Questions, true_ids_QK: Ids) -> None:
    config = IndexConfig(recall_target=1.0, rescore=0)
    tuned = tune(index, questions_QD, true_ids_QK, config)
    assert not tuned.meets_target
    assert tuned.recall == max(point.recall for point in tuned.curve) < 1.0
    assert tuned.settings.rescore == 0


@pytest.mark.parametrize(("nprobe", "candidates"), [(3, None), (None, 50), (3, 50)])
def test_what_the_recipe_fixes_is_kept(
    nprobe: int | None,
    candidates: int | None,
    index: faiss.Index,
    questions_QD: Questions,
    true_ids_QK: Ids,
) -> None:
    config = IndexConfig(nprobe=nprobe, rescore=candidates)
    tuned: Tuned = tune(index, questions_QD, true_ids_QK, config)
    assert tuned.settings.nprobe == (nprobe or tuned.settings.nprobe)
    assert tuned.settings.rescore == (candidates if candidates is not None else tuned.settings.rescore)
    assert tuned == tune(index, questions_QD, true_ids_QK, config)


def test_an_exact_index_needs_nothing(vectors_ND: Vectors, questions_QD: Questions, true_ids_QK: Ids) -> None:
    index = faiss.IndexFlatIP(16)
    index.add(vectors_ND.astype(np.float32))
    tuned = tune(index, questions_QD, true_ids_QK, IndexConfig())
    assert (tuned.settings, tuned.recall) == (SearchSettings(nprobe=1, rescore=0), 1.0)
