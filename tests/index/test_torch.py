"""Training and coding in PyTorch, here on the CPU, against numpy and against FAISS with one codebook or sample."""

from itertools import pairwise

import faiss
import numpy as np
import numpy.typing as npt
import pytest
import torch

from dpr.errors import IndexBuildError
from dpr.index import torch_kmeans
from dpr.index.choose import IndexPlan, choose
from dpr.index.coding import FaissCoder, build_part, coder
from dpr.index.hardware import Hardware
from dpr.index.torch_index import TorchCoder
from dpr.index.torch_kmeans import KMeans, kmeans, nearest
from dpr.index.training import describe_training, quantisation_error, train
from dpr.index.truth import exact_topk
from dpr.recipe_index import IndexConfig

DIM, ROWS = 32, 6000
TORCH = Hardware("cpu")
Floats = npt.NDArray[np.float32]


def plan_of(factory: str, rows: int = ROWS, dim: int = DIM) -> IndexPlan:
    return choose(IndexConfig(factory=factory), rows, dim)


def topics(rows: int, seed: int) -> Floats:
    """Draw vectors around 200 topics of unequal weight, near a plane of fewer dimensions, as of passages."""
    rng = np.random.default_rng(7)
    basis, centres = rng.normal(size=(12, DIM)), rng.normal(size=(200, 12))
    rng = np.random.default_rng(seed)
    topic = np.minimum(rng.geometric(0.03, rows), 200) - 1
    inner = centres[topic] + 0.5 * rng.normal(size=(rows, 12))
    return (inner @ basis / 4 + 0.1 * rng.normal(size=(rows, DIM))).astype(np.float16).astype(np.float32)


@pytest.fixture(scope="module", name="sample_ND")
def training_sample() -> Floats:
    return topics(ROWS, seed=0)


@pytest.mark.parametrize("spherical", [True, False])
def test_nearest_is_that_of_brute_force(spherical: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(torch_kmeans.SCORES_BYTES, "cpu", 4 * 3 * 50 * 7)  # so that 100 points take 15 blocks
    rng = np.random.default_rng(0)
    points_GND, centroids_GKD = rng.normal(size=(3, 100, 8)), rng.normal(size=(3, 50, 8))
    if spherical:
        expected = np.einsum("gnd,gkd->gnk", points_GND, centroids_GKD).argmax(axis=2)
    else:
        expected = np.square(points_GND[:, :, None] - centroids_GKD[:, None]).sum(axis=3).argmin(axis=2)
    tensors = [torch.from_numpy(array.astype(np.float32)) for array in (points_GND, centroids_GKD)]
    np.testing.assert_array_equal(nearest(*tensors, spherical=spherical), expected)


def test_of_equal_centroids_the_first_is_nearest() -> None:
    points = torch.ones(1, 4, 2)
    assert nearest(points, torch.ones(1, 3, 2), spherical=False).tolist() == [[0, 0, 0, 0]]


@pytest.mark.parametrize("spherical", [True, False])
def test_clusters_end_where_plain_lloyd_does(spherical: bool) -> None:
    rng = np.random.default_rng(1)
    points_GND = torch.from_numpy(rng.normal(size=(2, 300, 6)).astype(np.float32))
    clustering = KMeans(clusters=9, iterations=12, seed=5, spherical=spherical)
    start = np.random.default_rng(5).permutation(300)[:9]
    for points_ND, found_KD in zip(points_GND.numpy(), kmeans(points_GND, clustering).numpy(), strict=True):
        means_KD = points_ND[start].astype(np.float64)
        for _ in range(13):
            if spherical:
                means_KD /= np.linalg.norm(means_KD, axis=1, keepdims=True)
            last_KD = means_KD
            scores_NK = points_ND @ means_KD.T - (0 if spherical else 0.5 * np.square(means_KD).sum(axis=1))
            means_KD = np.stack([points_ND[scores_NK.argmax(axis=1) == k].mean(axis=0) for k in range(9)])
        np.testing.assert_allclose(found_KD, last_KD, atol=1e-5)


def test_empty_clusters_are_filled_from_large_ones() -> None:
    # nearly all points are equal, so most of the centroids that start among them lose all points
    points_ND = np.ones((500, 4), np.float32)
    points_ND[:20] += np.random.default_rng(0).normal(size=(20, 4)).astype(np.float32)
    (found_KD,) = kmeans(torch.from_numpy(points_ND)[None], KMeans(16, 10, seed=1, spherical=False)).numpy()
    assert np.isfinite(found_KD).all()
    assert len(np.unique(found_KD, axis=0)) > 12
    error = np.square(points_ND[:, None] - found_KD).sum(axis=2).min(axis=1).mean()
    theirs = faiss.Kmeans(4, 16, niter=10, seed=1, min_points_per_centroid=1)
    theirs.train(points_ND)
    assert error <= 2 * theirs.obj[-1] / 500


def test_as_many_points_as_clusters_are_the_centroids() -> None:
    points = torch.rand(2, 7, 3)
    assert torch.equal(kmeans(points, KMeans(7, 10, seed=1, spherical=True)), points)


@pytest.mark.slow
@pytest.mark.parametrize(
    "factory", ["IVF64,PQ8", "IVF64,PQ2", "IVF64,Flat", "IVF64,SQ8", "IVF64,PQ16x4", "IVF64,PQ1x4", "IVF64,PQ8x6"]
)
def test_codes_are_those_of_faiss(factory: str, sample_ND: Floats) -> None:
    codebook = train(sample_ND, plan_of(factory), seed=1)
    vectors_ND = topics(4000, seed=3).astype(np.float16)
    lists_N, codes_NB, distances_N = coder(codebook, TORCH)(vectors_ND, "vectors")
    their_lists_N, their_codes_NB, their_distances_N = FaissCoder(codebook)(vectors_ND, "vectors")
    same_N = lists_N == their_lists_N
    np.testing.assert_allclose(distances_N[same_N], their_distances_N[same_N], rtol=1e-4, atol=1e-6)
    differ = (lists_N != their_lists_N) | (codes_NB != their_codes_NB).any(axis=1)
    assert differ.mean() <= 0.001 * codes_NB.shape[1]
    assert (codes_NB != their_codes_NB).mean() <= 0.001
    # where they differ, both are as near
    coarse_LD = codebook.quantizer.reconstruct_n(0, 64)
    vectors_ND = vectors_ND.astype(np.float32)
    scores = [(vectors_ND * coarse_LD[lists]).sum(axis=1) for lists in (lists_N, their_lists_N)]
    np.testing.assert_allclose(*scores, rtol=1e-4)
    if factory != "IVF64,SQ8":
        same = lists_N == their_lists_N
        errors = [
            np.square(_decoded(codebook, lists_N, codes) - vectors_ND).sum(axis=1)[same]
            for codes in (codes_NB, their_codes_NB)
        ]
        np.testing.assert_allclose(*errors, rtol=1e-4, atol=1e-6)


def _decoded(codebook: faiss.Index, lists_N: npt.NDArray[np.int64], codes_NB: npt.NDArray[np.uint8]) -> Floats:
    numbers_NB = lists_N.astype("<i8")[:, None].view(np.uint8)[:, : codebook.coarse_code_size()]
    decoded_ND: Floats = codebook.sa_decode(np.ascontiguousarray(np.concatenate([numbers_NB, codes_NB], axis=1)))
    return decoded_ND


@pytest.mark.slow
@pytest.mark.parametrize("factory", ["IVF64,PQ8", "IVF64,SQ8", "IVF64,Flat", "IVF64,PQ16x4", "IVF64,PQ8x6"])
def test_a_codebook_is_as_good_as_that_of_faiss(factory: str, sample_ND: Floats) -> None:
    base_ND, questions_QD = topics(5000, seed=2), topics(300, seed=4) + topics(300, seed=5) / 2
    truth = faiss.knn(questions_QD, base_ND, 20, metric=faiss.METRIC_INNER_PRODUCT)[1]
    found = {}
    for name, hardware in (("torch", TORCH), ("faiss", Hardware())):
        index = train(sample_ND, plan_of(factory), seed=1, hardware=hardware)
        assert (index.is_trained, index.ntotal, index.quantizer.ntotal) == (True, 0, 64)
        error, _ = quantisation_error(index, base_ND)
        index.add(base_ND)
        index.nprobe = 8
        ids = index.search(questions_QD, 20)[1]
        found[name] = error, np.mean([len(np.intersect1d(*pair)) / 20 for pair in zip(ids, truth, strict=True)])
    (error, recall), (their_error, their_recall) = found["torch"], found["faiss"]
    assert error <= 1.02 * their_error + 1e-12
    assert recall >= their_recall - 0.02


@pytest.mark.slow
def test_the_seed_decides_and_the_width_of_blocks_does_not(sample_ND: Floats) -> None:
    def codebook(seed: int) -> bytes:
        return bytes(faiss.serialize_index(train(sample_ND[:1000], plan_of("IVF64,PQ8", 1000), seed, TORCH)))

    first = codebook(1)
    assert codebook(1) == first != codebook(2)
    index = faiss.deserialize_index(np.frombuffer(first, np.uint8))
    parts = [build_part(index, sample_ND.astype(np.float16), rows, TorchCoder(index, "cpu")) for rows in (400, 6000)]
    for one, other in pairwise(parts):
        for found, expected in zip(vars(one).values(), vars(other).values(), strict=True):
            np.testing.assert_array_equal(found, expected)


def test_half_precision_products_are_not_used_whatever_was_set() -> None:
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("medium")
        with torch_kmeans.exact_products():
            assert torch.get_float32_matmul_precision() == "highest"
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision(before)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("factory", "message"),
    [
        ("IVF64,PQ8", "by PyTorch on cpu"),
        ("IVF64,SQ8", "by PyTorch on cpu"),
        ("OPQ8,IVF64,PQ8", "GPU is not used for indexes of the kind OPQ8,IVF64,PQ8"),
        ("IVF64_HNSW8,PQ8", "is not used"),
        ("IVF64,PQ8x4fs", "is not used"),
        ("IVF64,RaBitQ", "is not used"),
        ("Flat", "is not used"),
    ],
)
def test_other_kinds_are_left_to_faiss(factory: str, message: str, sample_ND: Floats) -> None:
    plan = plan_of(factory)
    assert message in describe_training(plan, TORCH)
    assert "no GPU" in describe_training(plan, Hardware())
    if "is not used" in message:
        ours, theirs = (train(sample_ND[:600], plan_of(factory, 600), 1, where) for where in (TORCH, Hardware()))
        assert bytes(faiss.serialize_index(ours)) == bytes(faiss.serialize_index(theirs))
        assert isinstance(coder(ours, TORCH), FaissCoder)


@pytest.mark.parametrize(
    ("sample_ND", "message"),
    [
        (np.zeros((300, 31), np.float16), r"shape \(300, 31\) and the index takes \(rows, 32\)"),
        (np.zeros(16, np.float32), r"shape \(16,\)"),
        (np.zeros((7, 32), np.float16), "at least 256 training vectors and the sample has 7"),
        (np.array([[0.0] * 32] * 298 + [[np.nan] * 32, [np.inf] * 32], np.float16), "2 of 300 .* first is row 298"),
    ],
)
def test_messages_are_those_of_training_without_pytorch(sample_ND: Floats, message: str) -> None:
    for hardware in (TORCH, Hardware()):
        with pytest.raises(IndexBuildError, match=message):
            train(sample_ND, plan_of("IVF8,PQ8"), 1, hardware)


@pytest.mark.slow
def test_spoilt_vectors_are_refused_when_coded(sample_ND: Floats) -> None:
    codebook = train(sample_ND, plan_of("IVF64,PQ8"), seed=1)
    spoilt_ND = sample_ND[:900].astype(np.float16)
    spoilt_ND[450, 3] = np.inf
    with pytest.raises(IndexBuildError, match=r"1 of 400 vectors of rows 400 and on .* first is row 50"):
        build_part(codebook, spoilt_ND, 400, TorchCoder(codebook, "cpu"))
    with pytest.raises(IndexBuildError, match=r"shape \(3, 8\) and the index takes \(rows, 32\)"):
        build_part(codebook, np.zeros((3, 8), np.float16), code=TorchCoder(codebook, "cpu"))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("k", [1, 20, 500])
def test_a_gpu_finds_the_neighbours_that_the_cpu_does(k: int) -> None:
    vectors_ND = np.concatenate([topics(70_000, seed=8), np.tile(topics(10, seed=9), (30, 1))]).astype(np.float16)
    questions_QD = topics(1_100, seed=10) * np.float32(1.1)
    blocks = [(np.arange(len(vectors_ND))[::-1], vectors_ND)]
    torch.set_float32_matmul_precision("medium")
    try:
        found, expected = (exact_topk(questions_QD, blocks, k, Hardware(device)) for device in ("cuda", None))
    finally:
        torch.set_float32_matmul_precision("highest")
    np.testing.assert_array_equal(found[0], expected[0])
    np.testing.assert_array_equal(found[1], expected[1])


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_gives_what_the_cpu_does(sample_ND: Floats) -> None:
    codebook = train(sample_ND, plan_of("IVF64,PQ8"), seed=1, hardware=Hardware("cuda"))
    again = train(sample_ND, plan_of("IVF64,PQ8"), seed=1, hardware=Hardware("cuda"))
    assert bytes(faiss.serialize_index(codebook)) == bytes(faiss.serialize_index(again))
    (lists_N, codes_NB, distances_N), (cpu_lists_N, cpu_codes_NB, cpu_distances_N) = (
        TorchCoder(codebook, device)(sample_ND, "vectors") for device in ("cuda", "cpu")
    )
    same_N = lists_N == cpu_lists_N
    assert same_N.mean() >= 0.999
    np.testing.assert_allclose(distances_N[same_N], cpu_distances_N[same_N], rtol=1e-4, atol=1e-6)
    assert (codes_NB != cpu_codes_NB).mean() <= 0.001
