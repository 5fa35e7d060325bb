"""Exact neighbours, against sorting error-free sums of products."""

import math
from collections.abc import Iterator
from random import Random

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dpr.index import cpu_shortlist, products, torch_shortlist
from dpr.index.hardware import Hardware, faiss_threads
from dpr.index.truth import (
    Ids,
    RunningTopk,
    Scores,
    best_of,
    best_places,
    empty_topk,
    exact_topk,
    merge_topk,
    recall_at,
    recall_of_new,
)

Questions = npt.NDArray[np.float32]
Vectors = npt.NDArray[np.float16]

Found = tuple[Questions, Ids]

HARDWARE = {"numpy": Hardware(), "torch": Hardware("cpu")}


def ranked(scores_QN: Questions, ids_N: Ids, k: int) -> Found:
    """Return the best k by sorting all scores, and equal ones by id."""
    scores_QK = np.full((len(scores_QN), k), -np.inf, np.float32)
    ids_QK = np.full((len(scores_QN), k), -1)
    for question, scores_N in enumerate(scores_QN):
        order = sorted(range(len(ids_N)), key=lambda row: (-scores_N[row], ids_N[row]))[:k]
        scores_QK[question, : len(order)] = scores_N[order]
        ids_QK[question, : len(order)] = ids_N[order]
    return scores_QK, ids_QK


def by_sorting(questions_QD: Questions, vectors_ND: Vectors, ids_N: Ids, k: int) -> Found:
    """Return the best k by error-free sums of products, rounded to float64 and to float32."""
    wide_QD, wide_ND = questions_QD.astype(np.float64), vectors_ND.astype(np.float64)
    sums_QN = np.array([[math.fsum((q * v).tolist()) for v in wide_ND] for q in wide_QD]).reshape(len(wide_QD), -1)
    with np.errstate(over="ignore"):
        return ranked(sums_QN.astype(np.float32), ids_N, k)


def by_products(questions_QD: Questions, vectors_ND: Vectors, ids_N: Ids, k: int) -> Found:
    """Return the best k by numpy's float64 products."""
    return ranked((questions_QD.astype(np.float64) @ vectors_ND.astype(np.float64).T).astype(np.float32), ids_N, k)


def assert_same(found: Found, expected: Found) -> None:
    np.testing.assert_array_equal(found[0], expected[0])
    np.testing.assert_array_equal(found[1], expected[1])


@pytest.fixture
def _small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make blocks of 64 vectors of 8 dimensions, so that small tests have many, and small tiles and slices."""
    for module, bytes_of_number in ((cpu_shortlist, 4), (torch_shortlist, 2)):
        monkeypatch.setattr(module, "BLOCK_BYTES", 64 * 8 * bytes_of_number)
    monkeypatch.setattr(cpu_shortlist, "SMALL_BLOCK_BYTES", 64 * 8 * 4)
    for name, value in {"TILE_ROWS": 16, "TILE_QUESTIONS": 4, "COPY_ROWS": 5}.items():
        monkeypatch.setattr(cpu_shortlist, name, value)
    monkeypatch.setattr(products, "CALL_ROWS", 3)
    monkeypatch.setattr(cpu_shortlist.CpuShortlists, "slice_questions", 2)
    monkeypatch.setattr(torch_shortlist.TorchShortlists, "slice_questions", 3)
    monkeypatch.setattr(torch_shortlist, "SUM_BYTES", 5 * 8 * 8)


def blocks_of(vectors_ND: Vectors, ids_N: Ids, cuts: list[int]) -> list[tuple[Ids, Vectors]]:
    return list(zip(np.split(ids_N, cuts), np.split(vectors_ND, cuts), strict=True))


@st.composite
def collections(draw: st.DrawFn) -> tuple[Questions, Vectors, Ids, list[int]]:
    """Draw questions, vectors of one of several sorts, ids in any order, and where to cut them into blocks."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    rows, dim = draw(st.integers(1, 200)), 8
    sort = draw(st.sampled_from(["few values", "normal", "duplicates", "equal", "any size", "cancelling"]))
    vectors_ND = rng.normal(size=(rows, dim))
    questions_QD = rng.normal(size=(draw(st.integers(1, 9)), dim)).astype(np.float32)
    if sort == "few values":
        vectors_ND = rng.integers(-1, 2, size=(rows, dim)).astype(np.float64)
        questions_QD = rng.integers(-1, 2, size=questions_QD.shape).astype(np.float32)
    elif sort == "duplicates":
        vectors_ND = vectors_ND[rng.integers(0, max(1, rows // 8), rows)]
    elif sort == "equal":
        vectors_ND = np.repeat(vectors_ND[:1], rows, axis=0)
    elif sort == "any size":  # from the smallest float16 to the largest, and questions beyond the range of products
        vectors_ND *= 10.0 ** rng.integers(-8, 4, size=(rows, 1))
        with np.errstate(under="ignore"):
            questions_QD = (questions_QD * 10.0 ** rng.integers(-44, 38, size=(len(questions_QD), 1))).astype(
                np.float32
            )
    elif sort == "cancelling":  # sums are far smaller than what is summed
        vectors_ND[:, 1::2] = -vectors_ND[:, ::2]
        questions_QD[:, 1::2] = questions_QD[:, ::2] * np.float32(1 + 2**-20)
    ids_N = rng.permutation(10 * rows)[:rows] + draw(st.sampled_from([0, 2**62]))
    cuts = sorted(draw(st.lists(st.integers(0, rows), max_size=4)))
    return questions_QD, np.clip(vectors_ND, -65_000, 65_000).astype(np.float16), ids_N, cuts


@pytest.mark.slow
@pytest.mark.parametrize("name", HARDWARE)
@pytest.mark.usefixtures("_small_blocks")
@settings(max_examples=150, deadline=None)
@given(collection=collections(), k=st.integers(1, 40))
def test_the_best_are_those_of_sorting_everything(
    name: str, collection: tuple[Questions, Vectors, Ids, list[int]], k: int
) -> None:
    questions_QD, vectors_ND, ids_N, cuts = collection
    expected = by_sorting(questions_QD, vectors_ND, ids_N, k)
    blocks = blocks_of(vectors_ND, ids_N, cuts)
    assert_same(exact_topk(questions_QD, blocks, k, HARDWARE[name]), expected)
    assert_same(merge_topk([exact_topk(questions_QD, [block], k, HARDWARE[name]) for block in blocks], k), expected)


@pytest.mark.slow
@pytest.mark.parametrize("name", HARDWARE)
def test_many_rows_and_questions(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu_shortlist, "BLOCK_BYTES", 4_096 * 24 * 4)
    monkeypatch.setattr(torch_shortlist, "BLOCK_BYTES", 5_000 * 24 * 2)
    rows, questions = 20_000, 1_100
    rng = np.random.default_rng(0)
    vectors_ND = rng.normal(size=(rows, 24)).astype(np.float16)
    vectors_ND[15_000] = vectors_ND[3]  # the same passage in two blocks
    questions_QD = np.concatenate([vectors_ND[3:4], rng.normal(size=(questions - 1, 24))]).astype(np.float32)
    scores_QK, ids_QK = exact_topk(questions_QD, [(np.arange(rows), vectors_ND)], 100, HARDWARE[name])
    some = np.arange(0, questions, 50)
    assert_same((scores_QK[some], ids_QK[some]), by_products(questions_QD[some], vectors_ND, np.arange(rows), 100))
    assert (scores_QK.dtype, ids_QK.dtype) == (np.float32, np.int64)


@pytest.mark.parametrize("name", HARDWARE)
@pytest.mark.parametrize("sign", [1, -1])
def test_scores_beyond_float32_are_infinite_and_tie(name: str, sign: int) -> None:
    vectors_ND = (sign * np.linspace(30_000, 60_000, 50)[:, None] * np.ones((1, 4))).astype(np.float16)
    questions_QD = np.full((2, 4), 3e38, np.float32)
    scores_QK, ids_QK = exact_topk(questions_QD, [(np.arange(50)[::-1], vectors_ND)], 3, HARDWARE[name])
    assert (scores_QK == sign * np.inf).all()
    assert ids_QK.tolist() == [[0, 1, 2]] * 2


@pytest.mark.parametrize("threads", [1, 3, None])
def test_threads_change_nothing(threads: int | None) -> None:
    rng = np.random.default_rng(1)
    vectors_ND, questions_QD = rng.normal(size=(3_000, 24)).astype(np.float16), rng.normal(size=(70, 24))
    blocks = [(np.arange(3_000), vectors_ND)]
    with faiss_threads(threads):
        found = exact_topk(questions_QD.astype(np.float32), blocks, 30)
    assert_same(found, exact_topk(questions_QD.astype(np.float32), blocks, 30, Hardware(threads=2)))


def test_a_shortlist_is_short() -> None:
    rng = np.random.default_rng(2)
    vectors_ND, questions_QD = rng.normal(size=(20_000, 64)).astype(np.float16), rng.normal(size=(50, 64))
    sums = 0

    def count(self: cpu_shortlist.CpuShortlists, some: slice, counts_q: Ids, rows_P: Ids) -> tuple[Ids, Ids]:
        nonlocal sums
        sums += len(rows_P)
        return plain(self, some, counts_q, rows_P)

    plain = cpu_shortlist.CpuShortlists._sums
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cpu_shortlist.CpuShortlists, "_sums", count)
        exact_topk(questions_QD.astype(np.float32), [(np.arange(20_000), vectors_ND)], 100)
    assert 100 * 50 <= sums <= 115 * 50


@pytest.mark.parametrize("name", HARDWARE)
def test_nothing_to_search(name: str) -> None:
    for blocks in ([], [(np.empty(0, np.int64), np.empty((0, 3), np.float16))]):
        scores_QK, ids_QK = exact_topk(np.ones((2, 3), np.float32), blocks, 4, HARDWARE[name])
        assert np.isneginf(scores_QK).all()
        assert (ids_QK == -1).all()
    blocks = [(np.arange(5), np.ones((5, 3), np.float16))]
    assert exact_topk(np.empty((0, 3), np.float32), blocks, 4, HARDWARE[name])[1].shape == (0, 4)
    assert exact_topk(np.ones((2, 3), np.float32), blocks, 0, HARDWARE[name])[1].shape == (2, 0)


def results(rng: np.random.Generator, count: int, widths: list[int]) -> Iterator[Found]:
    """Yield results with few different scores, ids that differ, and gaps."""
    ids = iter(rng.permutation(100_000))
    for width in widths:
        scores_QK = rng.integers(0, 30, size=(count, width)).astype(np.float32)
        ids_QK = np.array([[next(ids) for _ in range(width)] for _ in range(count)], np.int64).reshape(count, width)
        missing_QK = rng.random((count, width)) < 0.2
        yield np.where(missing_QK, -np.inf, scores_QK).astype(np.float32), np.where(missing_QK, -1, ids_QK)


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**32),
    count=st.integers(1, 5),
    widths=st.lists(st.integers(0, 12), max_size=9),
    depth=st.integers(1, 20),
)
def test_running_best_is_that_of_sorting_all_results(seed: int, count: int, widths: list[int], depth: int) -> None:
    added = list(results(np.random.default_rng(seed), count, widths))
    running = RunningTopk(count, depth)
    for scores_QK, ids_QK in added:
        running.add(scores_QK, ids_QK)
    scores_QK, ids_QK = running.best()
    assert (running.questions, running.depth) == (count, depth)
    np.testing.assert_array_equal(running.floors(), scores_QK[:, -1])
    for question in range(count):
        pairs = [(-s[question], i[question]) for s, i in added]
        flat = sorted((s, i) for scores, ids in pairs for s, i in zip(scores, ids, strict=True) if i >= 0)[:depth]
        missing = depth - len(flat)
        assert ids_QK[question].tolist() == [i for _, i in flat] + [-1] * missing
        assert scores_QK[question].tolist() == [-s for s, _ in flat] + [-np.inf] * missing


def test_running_best_holds_no_more_than_the_best_however_much_is_added() -> None:
    running = RunningTopk(3, 50)
    rng = np.random.default_rng(0)
    held = []
    for number in range(200):
        ids_QK = np.arange(50) + 50 * number + np.zeros((3, 1), np.int64)
        running.add(rng.normal(size=(3, 50)).astype(np.float32), ids_QK)
        held.append(sum(ids.size for _, ids in running._waiting))
    assert max(held) <= 3 * 50


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


@given(
    st.lists(st.sampled_from([-np.inf, -2.5, -1e-38, -0.0, 0.0, 1e-38, 1.0, 1.0000001, 3e38]), max_size=12),
    st.integers(0, 14),
    st.randoms(use_true_random=False),
)
def test_the_best_come_first_and_equal_scores_keep_their_order(scores: list[float], k: int, random: Random) -> None:
    scores_1C = np.array([scores], np.float32).reshape(1, -1)
    expected = sorted(range(len(scores)), key=lambda place: (-scores_1C[0, place], place))[:k]
    assert best_places(scores_1C, k).tolist() == [expected]
    ids = random.sample(range(100), len(scores))
    by_id = sorted(range(len(scores)), key=lambda place: (-scores_1C[0, place], ids[place]))[:k]
    found = best_of(scores_1C, np.array([ids], np.int64).reshape(1, -1), k)[1][0]
    assert found.tolist() == [ids[place] for place in by_id] + [-1] * (k - len(by_id))


def test_recall_of_new_rows_is_close_to_the_true_one_and_needs_no_old_ones() -> None:
    rng = np.random.default_rng(2)
    scores_QN = rng.normal(size=(40, 300)).astype(np.float32)
    is_new = np.zeros(300, np.bool_)
    is_new[rng.choice(300, 60, replace=False)] = True
    visited_QN = rng.random((40, 300)) < np.where(is_new, 0.7, 0.95)  # what some index looks at

    def best(some_QN: npt.NDArray[np.bool_], k: int = 20) -> tuple[Scores, Ids]:
        ids_QN = np.where(some_QN, np.arange(300), -1)
        return best_of(np.where(some_QN, scores_QN, -np.inf).astype(np.float32), ids_QN, k)

    found, exact = best(visited_QN), best(np.ones((40, 300), np.bool_))
    measured = recall_of_new(found, best(np.tile(is_new, (40, 1))))
    should = [[id_ for id_ in ids_K.tolist() if is_new[id_]] for ids_K in exact[1]]
    there = [id_ in ids_K.tolist() for new, ids_K in zip(should, found[1], strict=True) for id_ in new]
    assert measured is not None
    assert measured == pytest.approx(np.mean(there), abs=0.05)
    assert measured < 0.9
    assert recall_of_new(exact, best(np.tile(is_new, (40, 1)))) == 1.0
    assert recall_of_new(exact, empty_topk(40, 20)) is None
