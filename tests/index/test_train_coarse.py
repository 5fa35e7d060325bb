"""Coarse centroids are trained on a part of the sample first: against FAISS's own training on all of it."""

import faiss
import numpy as np
import numpy.typing as npt
import pytest

from dpr.index import coarse_training
from dpr.index.choose import choose, new_index
from dpr.index.coarse_training import moved, train_coarse
from dpr.index.hardware import faiss_threads
from dpr.index.training import train
from dpr.recipe_index import IndexConfig

DIM, LISTS = 32, 64
Floats = npt.NDArray[np.float32]


def topics(rows: int, seed: int) -> Floats:
    """Draw vectors of length 1 around 200 topics of unequal weight."""
    centres_TD = np.random.default_rng(7).normal(size=(200, DIM))
    rng = np.random.default_rng(seed)
    topic = np.minimum(rng.geometric(0.03, rows), 200) - 1
    vectors_ND = centres_TD[topic] + 0.7 * rng.normal(size=(rows, DIM))
    return (vectors_ND / np.linalg.norm(vectors_ND, axis=1, keepdims=True)).astype(np.float32)


def recalls(index: faiss.Index, base_ND: Floats, questions_QD: Floats) -> list[float]:
    """Return recall@20 with a few numbers of lists visited."""
    truth_QK = faiss.knn(questions_QD, base_ND, 20, metric=faiss.METRIC_INNER_PRODUCT)[1]
    index.add(base_ND)
    found = []
    for index.nprobe in (1, 4, 16):
        ids_QK = index.search(questions_QD, 20)[1]
        found.append(float(np.mean([np.isin(t, i).mean() for t, i in zip(truth_QK, ids_QK, strict=True)])))
    return found


@pytest.mark.slow
@pytest.mark.parametrize("factory", [f"IVF{LISTS},Flat", f"IVF{LISTS},PQ16x4"])
@pytest.mark.parametrize("seed", [1, 2])
def test_recall_is_that_of_faiss_with_the_same_sample(factory: str, seed: int) -> None:
    sample_ND = topics(64 * LISTS, seed=seed)
    ours = train(sample_ND, choose(IndexConfig(factory=factory), 20_000, DIM), seed)
    theirs = new_index(factory, DIM)
    theirs.cp.seed = seed
    theirs.train(sample_ND)
    assert not np.array_equal(ours.quantizer.reconstruct_n(0, LISTS), theirs.quantizer.reconstruct_n(0, LISTS))
    base_ND, questions_QD = topics(20_000, seed=5), topics(300, seed=6)
    for recall, their_recall in zip(*(recalls(index, base_ND, questions_QD) for index in (ours, theirs)), strict=True):
        assert recall >= their_recall - 0.02
    fits = [float(index.quantizer.search(base_ND, 1)[0].mean()) for index in (ours, theirs)]
    assert fits[0] >= fits[1] - 0.01


@pytest.mark.parametrize("rows", [7 * 1_024, 64 * 1_024])
def test_many_centroids_fit_as_those_of_faiss_do(rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 1,024 lists in 32 groups, vectors are compared with those of 16. All steps see all of a few vectors."""
    monkeypatch.setattr(coarse_training, "MANY_LISTS", 1_024)
    sample_ND, others_ND = topics(rows, seed=1), topics(5_000, seed=2)
    ours, theirs, again = (new_index("IVF1024,Flat", DIM) for _ in range(3))
    train_coarse(ours, sample_ND, 1)
    theirs.train(sample_ND)
    fits = [float(index.quantizer.search(others_ND, 1)[0].mean()) for index in (ours, theirs)]
    assert fits[0] >= fits[1] - 0.005
    centroids_LD = ours.quantizer.reconstruct_n(0, 1_024)
    np.testing.assert_allclose(np.linalg.norm(centroids_LD, axis=1), 1, rtol=1e-5)
    with faiss_threads(1):
        train_coarse(again, sample_ND, 1)
    np.testing.assert_array_equal(again.quantizer.reconstruct_n(0, 1_024), centroids_LD)


def test_a_step_is_one_of_k_means_and_an_empty_list_takes_half_of_a_large_one() -> None:
    vectors_ND = topics(3_000, seed=1)
    centroids_LD = np.concatenate([topics(60, seed=2), np.zeros((1, DIM), np.float32)])  # no vector goes to the last
    nearest_N = (vectors_ND.astype(np.float64) @ centroids_LD.T.astype(np.float64)).argmax(axis=1)
    counts_L = np.bincount(nearest_N, minlength=61)
    assert counts_L[60] == 0
    found_LD = moved(centroids_LD, vectors_ND)
    largest = int(counts_L.argmax())
    for number in np.flatnonzero(counts_L).tolist():
        mean_D = vectors_ND[nearest_N == number].mean(axis=0)
        halves = [number, 60] if number == largest else [number]
        for half in halves:
            assert found_LD[half] @ mean_D / np.linalg.norm(mean_D) > (0.999_99 if len(halves) == 1 else 0.999)
    assert not np.array_equal(found_LD[largest], found_LD[60])


def test_centroids_have_length_one_and_are_as_many_as_lists() -> None:
    index = new_index(f"IVF{LISTS},Flat", DIM)
    train_coarse(index, topics(64 * LISTS, seed=1), 1)
    assert (index.quantizer.ntotal, index.quantizer.is_trained) == (LISTS, True)
    np.testing.assert_allclose(np.linalg.norm(index.quantizer.reconstruct_n(0, LISTS), axis=1), 1, rtol=1e-5)


@pytest.mark.parametrize(
    ("factory", "rows"), [(f"IVF{LISTS},Flat", 64 * LISTS - 1), (f"IVF{LISTS}_HNSW8,Flat", 5_000), ("Flat", 5_000)]
)
def test_small_samples_and_other_kinds_are_left_to_faiss(factory: str, rows: int) -> None:
    index = new_index(factory, DIM)
    before = bytes(faiss.serialize_index(index))
    train_coarse(index, topics(rows, seed=1), 1)
    assert bytes(faiss.serialize_index(index)) == before
