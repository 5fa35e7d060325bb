"""Training is repeatable, quiet and checked."""

from collections.abc import Callable
from contextlib import AbstractContextManager

import faiss
import numpy as np
import numpy.typing as npt
import pytest

from dpr.errors import IndexBuildError
from dpr.index.choose import IndexPlan, choose
from dpr.index.coding import FaissCoder
from dpr.index.kinds import inverted
from dpr.index.training import imbalance_growth, list_imbalance, quantisation_error, train
from dpr.recipe_index import IndexConfig

Vectors = npt.NDArray[np.float16]
FullDisk = Callable[[], AbstractContextManager[None]]


def plan_of(factory: str, rows: int = 1500, dim: int = 16) -> IndexPlan:
    return choose(IndexConfig(factory=factory), rows, dim)


def bytes_of(index: faiss.Index) -> bytes:
    return bytes(faiss.serialize_index(index))


@pytest.mark.slow
@pytest.mark.parametrize("factory", ["IVF8,PQ4x4", "OPQ4,IVF8,PQ4x4fs", "IVF8,RaBitQ", "PQ4x4", "HNSW8,PQ4", "Flat"])
def test_the_seed_decides_the_codebook_and_nothing_is_printed(
    factory: str, vectors_ND: Vectors, capfd: pytest.CaptureFixture[str]
) -> None:
    sample_ND = vectors_ND[:300].astype(np.float32)
    first, again, other = (bytes_of(train(sample_ND, plan_of(factory), seed)) for seed in (1, 1, 2))
    assert first == again
    assert (first == other) == (factory == "Flat")
    assert capfd.readouterr() == ("", "")


def test_the_codebook_is_trained_empty_and_of_inner_product(vectors_ND: Vectors) -> None:
    codebook = train(vectors_ND.astype(np.float32), plan_of("IVF8,PQ4x4"), seed=1)
    assert (codebook.is_trained, codebook.ntotal, codebook.metric_type) == (True, 0, faiss.METRIC_INNER_PRODUCT)


@pytest.mark.parametrize(
    ("factory", "sample_ND", "message"),
    [
        ("Flat", np.zeros((300, 15), np.float32), r"shape \(300, 15\) and the index takes \(rows, 16\)"),
        ("Flat", np.zeros(16, np.float32), r"shape \(16,\)"),
        ("Flat", np.zeros((0, 16), np.float32), "at least 1 training vectors and the sample has 0"),
        ("IVF8,Flat", np.zeros((7, 16), np.float32), "at least 8 training vectors and the sample has 7"),
        ("Flat", np.array([[0.0] * 16, [np.nan] * 16, [np.inf] * 16], np.float32), "2 of 3 .* first is row 1"),
        ("PCA32,Flat", np.ones((300, 16), np.float32), "cannot output 32 dimensions from 16"),
        ("NSG8", faiss.rand((600, 16), 1), "does not support incremental addition"),
        ("IVF4,RQ4x4fs", faiss.rand((300, 16), 1), "search params not supported"),
    ],
)
def test_what_cannot_be_trained_is_one_sentence(factory: str, sample_ND: npt.NDArray[np.float32], message: str) -> None:
    with pytest.raises(IndexBuildError, match=message) as raised:
        train(sample_ND, plan_of(factory), seed=1)
    assert "\n" not in str(raised.value)


def test_quantisation_error_is_that_of_the_nearest_centroids(vectors_ND: Vectors) -> None:
    sample_ND = vectors_ND.astype(np.float32)
    codebook = train(sample_ND, plan_of("IVF8,PQ4x4"), seed=1)
    coarse_LD = codebook.quantizer.reconstruct_n(0, 8)
    centroids_MKd = faiss.vector_to_array(codebook.pq.centroids).reshape(4, 16, 4)
    residual_ND = sample_ND - coarse_LD[(sample_ND @ coarse_LD.T).argmax(axis=1)]
    nearest = [
        np.square(residual_ND[:, None, 4 * m : 4 * m + 4] - centroids_MKd[m]).sum(axis=2).min(axis=1) for m in range(4)
    ]
    expected = np.sum(nearest) / np.square(sample_ND).sum()
    assert quantisation_error(codebook, vectors_ND)[0] == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("factory", ["Flat", "IVF8,Flat", "HNSW8"])
def test_exact_kinds_have_no_quantisation_error(factory: str, vectors_ND: Vectors) -> None:
    codebook = train(vectors_ND.astype(np.float32), plan_of(factory), seed=1)
    assert quantisation_error(codebook, vectors_ND)[0] == pytest.approx(0.0, abs=1e-12)


@pytest.mark.slow
@pytest.mark.parametrize("factory", ["IVF32,Flat", "OPQ4,IVF32,PQ4x4fs", "PCA8,IVF32,SQ8"])
def test_imbalance_of_all_rows_is_estimated_from_samples_without_bias(factory: str, vectors_ND: Vectors) -> None:
    codebook = train(vectors_ND.astype(np.float32), plan_of(factory), seed=1)
    index = faiss.clone_index(codebook)
    index.add(vectors_ND.astype(np.float32))
    lists = inverted(index).invlists
    sizes_L = np.array([lists.list_size(number) for number in range(32)])
    assert lists.imbalance_factor() > 1.2
    pairs = 32 * (sizes_L * (sizes_L - 1)).sum() / (1500 * 1499)
    lists_N = FaissCoder(codebook)(vectors_ND, "vectors").lists_N
    assert list_imbalance(32, lists_N) == pytest.approx(pairs)
    assert pairs == pytest.approx(lists.imbalance_factor(), rel=0.02)
    rng = np.random.default_rng(3)
    samples = [list_imbalance(32, rng.choice(lists_N, 60, replace=False)) for _ in range(400)]
    # FAISS's own figure of 60 rows would be 0.5 too high; the mean of 400 estimates lies within 4 of its deviations
    assert abs(np.mean(samples) - pairs) < 4 * np.std(samples) / 20 < 0.2


@pytest.mark.parametrize(("lists", "rows"), [(0, 300), (8, 1), (8, 0)])
def test_without_lists_or_pairs_there_is_no_imbalance(lists: int, rows: int) -> None:
    assert list_imbalance(lists, np.zeros(rows, np.int64)) is None


def test_growth_of_imbalance_bounds_that_of_any_mixture() -> None:
    rng = np.random.default_rng(4)
    for share in (0.01, 0.3, 0.99):
        p_L, q_L = rng.dirichlet(np.full(64, 0.3), size=2)
        mixed = 64 * np.square((1 - share) * p_L + share * q_L).sum()
        trained, new = 64 * np.square(p_L).sum(), 64 * np.square(q_L).sum()
        assert mixed / trained - 1 <= imbalance_growth(trained, new, share)
        assert imbalance_growth(trained, trained, share) == pytest.approx(0)
    assert imbalance_growth(2.0, 40.0, 0.01) < 0.2 < imbalance_growth(2.0, 40.0, 0.6)
