"""Searches that give each passage once, against ranking all windows and dropping all but the first of each passage."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from dpr.index.truth import Ids, Scores, empty_topk, exact_topk
from dpr.search.best_windows import best_passages


@settings(deadline=None, max_examples=60, derandomize=True)
@given(
    passages=st.lists(st.integers(1, 40), min_size=1, max_size=12),
    k=st.integers(1, 15),
    seed=st.integers(0, 99),
    same=st.booleans(),
)
def test_each_passage_comes_once_by_its_best_window(passages: list[int], k: int, seed: int, same: bool) -> None:
    """`passages` are the windows of each; with `same`, all windows score alike."""
    rng = np.random.default_rng(seed)
    owner_N = rng.permutation(np.repeat(np.arange(len(passages)), passages))
    vectors_ND = (
        np.ones((len(owner_N), 8), np.float16) if same else rng.normal(size=(len(owner_N), 8)).astype(np.float16)
    )
    questions_QD = rng.normal(size=(5, 8)).astype(np.float32)
    widths: list[int] = []

    def search(some_qD: Scores, width: int) -> tuple[Scores, Ids]:
        widths.append(width)
        return exact_topk(some_qD, [(np.arange(len(owner_N)), vectors_ND)], width)

    def owners(ids_QC: Ids) -> Ids:
        return np.where(ids_QC < 0, -1, owner_N[ids_QC])

    found = best_passages(search, owners, questions_QD, k, len(owner_N))
    scores_QN, ids_QN = exact_topk(questions_QD, [(np.arange(len(owner_N)), vectors_ND)], len(owner_N))
    expected = empty_topk(5, k)
    for question in range(5):
        seen: list[int] = []
        for score, row in zip(scores_QN[question], ids_QN[question].tolist(), strict=True):
            if owner_N[row] not in seen and len(seen) < k:
                expected[0][question, len(seen)], expected[1][question, len(seen)] = score, row
                seen.append(owner_N[row])
    np.testing.assert_array_equal(found[1], expected[1])
    np.testing.assert_array_equal(found[0], expected[0])
    assert max(widths) <= len(owner_N)
