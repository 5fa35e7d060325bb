"""Exact neighbours, against sorting everything in float64."""

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dpr.index.truth import exact_topk, merge_topk, recall_at


def by_sorting(questions_QD: npt.NDArray, vectors_ND: npt.NDArray, ids_N: npt.NDArray, k: int) -> tuple:  # type: ignore[type-arg]
    """All scores, sorted by score and then by id."""
    scores_QN = (questions_QD.astype(np.float64) @ vectors_ND.astype(np.float64).T).astype(np.float32)
    scores_QK = np.full((len(questions_QD), k), -np.inf, np.float32)
    ids_QK = np.full((len(questions_QD), k), -1)
    for question, scores_N in enumerate(scores_QN):
        ranked = sorted(range(len(ids_N)), key=lambda row: (-scores_N[row], ids_N[row]))[:k]
        scores_QK[question, : len(ranked)] = scores_N[ranked]
        ids_QK[question, : len(ranked)] = ids_N[ranked]
    return scores_QK, ids_QK


@settings(max_examples=60, deadline=None)
@given(data=st.data(), k=st.integers(1, 12), rows=st.integers(1, 60))
def test_any_cut_into_blocks_gives_the_sorted_best(data: st.DataObject, k: int, rows: int) -> None:
    rng = np.random.default_rng(data.draw(st.integers(0, 999)))
    # few values, hence many equal scores
    vectors_ND = rng.integers(-1, 2, size=(rows, 3)).astype(np.float16)
    questions_QD = rng.integers(-1, 2, size=(4, 3)).astype(np.float32)
    ids_N = rng.permutation(1000)[:rows]
    cuts = sorted(data.draw(st.lists(st.integers(0, rows), max_size=4)))
    blocks = list(zip(np.split(ids_N, cuts), np.split(vectors_ND, cuts), strict=True))
    expected = by_sorting(questions_QD, vectors_ND, ids_N, k)
    for found in (
        exact_topk(questions_QD, blocks, k),
        merge_topk([exact_topk(questions_QD, [block], k) for block in blocks], k),
    ):
        for have, want in zip(found, expected, strict=True):
            np.testing.assert_array_equal(have, want)


def test_more_rows_and_questions_than_a_block() -> None:
    rows, questions = 20_000, 1_100
    rng = np.random.default_rng(0)
    vectors_ND = rng.normal(size=(rows, 8)).astype(np.float16)
    vectors_ND[15_000] = vectors_ND[3]  # the same passage in two blocks
    questions_QD = np.concatenate([vectors_ND[3:4], rng.normal(size=(questions - 1, 8))]).astype(np.float32)
    scores_QK, ids_QK = exact_topk(questions_QD, [(np.arange(rows), vectors_ND)], 10)
    some = np.arange(0, questions, 50)
    expected = by_sorting(questions_QD[some], vectors_ND, np.arange(rows), 10)
    np.testing.assert_array_equal(scores_QK[some], expected[0])
    np.testing.assert_array_equal(ids_QK[some], expected[1])
    assert (scores_QK.dtype, ids_QK.dtype) == (np.float32, np.int64)


def test_nothing_to_search() -> None:
    scores_QK, ids_QK = exact_topk(np.ones((2, 3), np.float32), [], 4)
    assert np.isneginf(scores_QK).all()
    assert (ids_QK == -1).all()


@pytest.mark.parametrize(
    ("found", "true", "k", "recall"),
    [
        ([[1, 2, 3]], [[3, 2, 1]], 3, 1.0),
        ([[1, 2, 3]], [[3, 2, 1]], 1, 0.0),
        ([[1, 2], [5, 6]], [[1, 9], [6, 5]], 2, 0.75),
        ([[1, -1, -1]], [[1, -1, -1]], 3, 1.0),
        ([[-1, -1, -1]], [[1, -1, -1]], 3, 0.0),
        ([[1, 2]], [[-1, -1]], 2, 1.0),
    ],
)
def test_recall_counts_the_true_ones_found(
    found: list[list[int]], true: list[list[int]], k: int, recall: float
) -> None:
    assert recall_at(np.array(found), np.array(true), k) == recall
