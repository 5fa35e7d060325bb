"""Coarse centroids are trained on a part of the sample first: against FAISS's own training on all of it."""

import faiss
import numpy as np
import numpy.typing as npt
import pytest

from dpr.index.choose import choose, new_index
from dpr.index.training import train, train_coarse
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


def test_centroids_have_length_one_and_are_as_many_as_lists() -> None:
    index = new_index(f"IVF{LISTS},Flat", DIM)
    train_coarse(index, topics(64 * LISTS, seed=1))
    assert (index.quantizer.ntotal, index.quantizer.is_trained) == (LISTS, True)
    np.testing.assert_allclose(np.linalg.norm(index.quantizer.reconstruct_n(0, LISTS), axis=1), 1, rtol=1e-5)


@pytest.mark.parametrize(
    ("factory", "rows"), [(f"IVF{LISTS},Flat", 64 * LISTS - 1), (f"IVF{LISTS}_HNSW8,Flat", 5_000), ("Flat", 5_000)]
)
def test_small_samples_and_other_kinds_are_left_to_faiss(factory: str, rows: int) -> None:
    index = new_index(factory, DIM)
    before = bytes(faiss.serialize_index(index))
    train_coarse(index, topics(rows, seed=1))
    assert bytes(faiss.serialize_index(index)) == before
