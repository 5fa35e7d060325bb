"""Recall where passages are equally near, against counting by score over all vectors.

Shapes: Q questions, N vectors, D dimensions, C candidates.
"""

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dpr.formats import MISSING
from dpr.index.recall import KnownQuestions
from dpr.index.truth import exact_topk

DIM = 4


def by_score(scores_QN: npt.NDArray[np.float64], found_QC: npt.NDArray[np.int64], k: int) -> float:
    """Share of the k best scores among those found; each score counts as often as it is among the k best."""
    hits = wanted = 0
    for scores_N, found_C in zip(scores_QN, found_QC, strict=True):
        best = np.sort(scores_N)[::-1][:k].tolist()
        wanted += len(best)
        for score in scores_N[found_C[found_C != MISSING]].tolist():
            if score in best:
                best.remove(score)
                hits += 1
    return hits / wanted


@settings(max_examples=60, deadline=None)
@given(
    copies=st.lists(st.integers(1, 30), min_size=1, max_size=8),
    k=st.integers(1, 12),
    known_more=st.integers(0, 3),
    seed=st.integers(0, 1_000),
)
def test_it_does_not_matter_which_equal_passages_are_found(
    copies: list[int], k: int, known_more: int, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    # small whole numbers, so that all sums are exact
    vectors_ND = np.repeat(rng.integers(-3, 4, (len(copies), DIM)), copies, axis=0).astype(np.float16)
    questions_QD = rng.integers(-3, 4, (5, DIM)).astype(np.float32)
    scores_QN = questions_QD.astype(np.float64) @ vectors_ND.astype(np.float64).T
    truth = exact_topk(questions_QD, [(np.arange(len(vectors_ND)), vectors_ND)], k + known_more)
    known = KnownQuestions(questions_QD, *truth, lambda _: lambda ids: vectors_ND[ids])
    order_QN = np.argsort(rng.random(scores_QN.shape), axis=1)
    found_QC = np.pad(order_QN[:, : rng.integers(1, 20)], ((0, 0), (0, 2)), constant_values=MISSING)
    # a tie of the last neighbour with the next one shows only if the next one is known; otherwise compare with the one
    # before
    last = np.sort(scores_QN, axis=1)[:, ::-1]
    if known_more or not (last[:, k - 1 : k] == last[:, k : k + 1]).any() or k == len(vectors_ND):
        (recall,) = known.recalls(found_QC, k, [found_QC.shape[1]])
        assert recall == pytest.approx(by_score(scores_QN, found_QC, k))


def test_a_thousand_copies_of_one_text_are_found_whichever_they_are() -> None:
    vectors_ND = np.ones((1_000, DIM), np.float16)
    questions_QD = np.ones((1, DIM), np.float32)
    truth = exact_topk(questions_QD, [(np.arange(1_000), vectors_ND)], 20)
    known = KnownQuestions(questions_QD, *truth, lambda _: lambda ids: vectors_ND[ids])
    found_QC = np.arange(900, 960)[None]
    assert known.recalls(found_QC, 20, [10, 20, 60]) == [0.5, 1.0, 1.0]
    assert known.recalls(np.full((1, 60), MISSING), 20, [60]) == [0.0]
