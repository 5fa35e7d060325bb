"""Searching and re-scoring, against FAISS's own settings and numpy."""

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import faiss
import numpy as np
import numpy.typing as npt
import pytest

from dpr.errors import EncoderError
from dpr.index.candidates import rescore, search
from dpr.index.choose import choose
from dpr.index.hardware import faiss_threads
from dpr.index.training import train
from dpr.index.truth import exact_topk, recall_at
from dpr.recipe_index import IndexConfig

Vectors = npt.NDArray[np.float16]
Questions = npt.NDArray[np.float32]
INVERTED = ["IVF8,Flat", "IVF8,PQ4x4", "OPQ4,IVF8,PQ4x4", "IVF8,PQ4x4fs", "IVF8,RaBitQ", "IVF8,RaBitQfs", "IVF8,SQ8"]


@pytest.fixture(scope="module")
def filled(vectors_ND: Vectors) -> Callable[[str], faiss.Index]:
    def make(factory: str) -> faiss.Index:
        plan = choose(IndexConfig(factory=factory), 1500, 16)
        index = train(vectors_ND[:300].astype(np.float32), plan, seed=1)
        index.add(vectors_ND.astype(np.float32))
        return index

    return make


@pytest.mark.parametrize("nprobe", [1, 3, 8, 99])
@pytest.mark.parametrize("factory", INVERTED)
def test_nprobe_of_one_call_is_nprobe_of_the_index(
    factory: str, nprobe: int, filled: Callable[[str], faiss.Index], questions_QD: Questions
) -> None:
    index = filled(factory)
    found = search(index, questions_QD, 9, nprobe)
    faiss.extract_index_ivf(index).nprobe = min(nprobe, 8)
    expected_scores_QK, expected_ids_QK = index.search(questions_QD, 9)
    np.testing.assert_array_equal(found[1], expected_ids_QK)
    np.testing.assert_array_equal(found[0][found[1] >= 0], expected_scores_QK[expected_ids_QK >= 0])


@pytest.mark.parametrize("factory", ["Flat", "IVF8,Flat"])
def test_an_exact_index_gives_the_truth(
    factory: str, filled: Callable[[str], faiss.Index], vectors_ND: Vectors, questions_QD: Questions
) -> None:
    scores_QK, ids_QK = search(filled(factory), questions_QD, 20, 8)
    true_scores_QK, true_ids_QK = exact_topk(questions_QD, [(np.arange(1500), vectors_ND)], 20)
    np.testing.assert_array_equal(ids_QK, true_ids_QK)
    np.testing.assert_allclose(scores_QK, true_scores_QK, rtol=1e-5)


def test_threads_with_settings_of_their_own(filled: Callable[[str], faiss.Index], questions_QD: Questions) -> None:
    index = filled("OPQ4,IVF8,PQ4x4")
    probes = [1, 2, 4, 8] * 10
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda nprobe: search(index, questions_QD, 9, nprobe), probes))
    for nprobe, found in zip(probes, together, strict=True):
        np.testing.assert_array_equal(found, search(index, questions_QD, 9, nprobe))


def test_fewer_are_found_than_asked_for(filled: Callable[[str], faiss.Index], questions_QD: Questions) -> None:
    scores_QK, ids_QK = search(filled("IVF8,Flat"), questions_QD, 1600, 8)
    assert (ids_QK[:, 1500:] == -1).all()
    assert np.isneginf(scores_QK[:, 1500:]).all()
    assert (np.sort(ids_QK[:, :1500]) == np.arange(1500)).all()


@pytest.mark.parametrize("shape", [(3, 15), (16,)])
def test_questions_of_another_width_are_refused(shape: tuple[int, ...], filled: Callable[[str], faiss.Index]) -> None:
    with pytest.raises(EncoderError, match=r"the index takes \(questions, 16\)"):
        search(filled("Flat"), np.zeros(shape, np.float32), 3, 1)


def test_rescored_candidates_are_those_of_numpy(vectors_ND: Vectors, questions_QD: Questions) -> None:
    rng = np.random.default_rng(0)
    candidates_QC = np.array([rng.permutation(1500)[:50] for _ in questions_QD])
    candidates_QC[0] = -1
    candidates_QC[1, 3:] = -1
    scores_QK, ids_QK = rescore(questions_QD, candidates_QC, lambda ids: vectors_ND[ids], 10)
    for question, candidates in enumerate(candidates_QC):
        there = candidates[candidates >= 0]
        exact = (vectors_ND[there].astype(np.float64) @ questions_QD[question].astype(np.float64)).astype(np.float32)
        order = np.lexsort((there, -exact))[:10]
        padding = 10 - len(order)
        np.testing.assert_array_equal(ids_QK[question], np.pad(there[order], (0, padding), constant_values=-1))
        np.testing.assert_array_equal(scores_QK[question], np.pad(exact[order], (0, padding), constant_values=-np.inf))


def test_equal_scores_rank_by_id() -> None:
    _, ids_QK = rescore(np.ones((1, 4), np.float32), np.array([[9, 3, 7, 5]]), lambda i: np.ones((len(i), 4), "f2"), 3)
    assert ids_QK.tolist() == [[3, 5, 7]]


@pytest.mark.parametrize("factory", ["IVF8,PQ4x4", "IVF8,PQ4x4fs", "IVF8,SQ4"])
def test_rescoring_restores_what_coding_lost(
    factory: str, filled: Callable[[str], faiss.Index], vectors_ND: Vectors, questions_QD: Questions
) -> None:
    _, true_ids_QK = exact_topk(questions_QD, [(np.arange(1500), vectors_ND)], 10)
    _, candidates_QC = search(filled(factory), questions_QD, 300, 8)
    _, rescored_QK = rescore(questions_QD, candidates_QC, lambda ids: vectors_ND[ids], 10)
    coded, rescored = (recall_at(ids, true_ids_QK, 10) for ids in (candidates_QC, rescored_QK))
    assert coded < rescored
    assert rescored >= 0.9


@pytest.mark.parametrize("limit", [1, 5, None])
def test_many_questions_are_rescored_by_threads_with_the_same_result(
    limit: int | None, vectors_ND: Vectors, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda _: range(5))
    rng = np.random.default_rng(0)
    questions_QD = rng.normal(size=(200, 16)).astype(np.float32)
    candidates_QC = np.array([rng.permutation(1500)[:50] for _ in questions_QD])
    candidates_QC[3:40, 7:] = -1
    threads = set()

    def fetch(ids: npt.NDArray[np.int64]) -> Vectors:
        threads.add(threading.get_ident())
        return vectors_ND[ids]

    with faiss_threads(limit):
        found = rescore(questions_QD, candidates_QC, fetch, 10)
    assert len(threads) <= (limit or 5)
    assert threading.get_ident() not in threads
    alone = [rescore(questions_QD[i : i + 1], candidates_QC[i : i + 1], fetch, 10) for i in range(200)]
    for place in (0, 1):
        np.testing.assert_array_equal(found[place], np.concatenate([one[place] for one in alone]))


def watch_threads(index: faiss.Index, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Return a list to which each search of the index adds the number of FAISS's threads."""
    seen: list[int] = []
    plain = index.search

    def watched(*given: object, **named: object) -> object:
        seen.append(faiss.omp_get_max_threads())
        return plain(*given, **named)

    monkeypatch.setattr(index, "search", watched)
    return seen


def test_many_questions_are_searched_by_all_threads(
    filled: Callable[[str], faiss.Index], vectors_ND: Vectors, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda _: range(3))
    index, questions_QD = filled("IVF8,PQ4x4"), vectors_ND[:200].astype(np.float32)
    expected = search(index, questions_QD[:64], 9, 3)
    seen = watch_threads(index, monkeypatch)
    for limit in (None, 2):
        with faiss_threads(limit):
            found = search(index, questions_QD, 9, 3)
            search(index, questions_QD[:64], 9, 3)
        for have, want in zip(found, expected, strict=True):
            np.testing.assert_array_equal(have[:64], want)
    assert seen == [3, 1, 2, 1]  # few questions in a small index have one thread


def test_few_questions_have_as_many_threads_as_have_enough_to_do(
    filled: Callable[[str], faiss.Index], vectors_ND: Vectors, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda _: range(5))
    index, questions_QD = filled("IVF8,PQ4x4"), vectors_ND[:64].astype(np.float32)
    seen = watch_threads(index, monkeypatch)
    # on average a question is compared with 4 of 8 lists, so with 750 codes of two bytes
    monkeypatch.setattr("dpr.index.hardware.THREAD_BYTES", 3 * 1500)
    with faiss_threads(4):
        for questions in (1, 3, 6, 64):
            search(index, questions_QD[:questions], 9, 4)
    assert seen == [1, 2, 3, 4]
