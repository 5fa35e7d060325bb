"""The list of a vector where there are many lists, against all comparisons in float64 and between the coders."""

import faiss
import numpy as np
import numpy.typing as npt
import pytest

from dpr.index import list_groups, torch_index
from dpr.index.choose import choose
from dpr.index.coding import FaissCoder, build_part
from dpr.index.list_groups import ListGroups, groups_of
from dpr.index.torch_index import TorchCoder
from dpr.index.training import train
from dpr.recipe_index import IndexConfig

DIM, ROWS, LISTS, NEAR = 16, 10_000, 256, 4
Floats = npt.NDArray[np.float32]


def topics(rows: int, seed: int) -> Floats:
    """Draw vectors around 400 topics."""
    centres = np.random.default_rng(1).normal(size=(400, DIM))
    rng = np.random.default_rng(seed)
    vectors_ND = centres[rng.integers(0, 400, rows)] + 0.4 * rng.normal(size=(rows, DIM))
    return (vectors_ND / np.linalg.norm(vectors_ND, axis=1, keepdims=True)).astype(np.float16).astype(np.float32)


@pytest.fixture(scope="module", name="sample_ND")
def training_sample() -> Floats:
    return topics(ROWS, seed=2)


@pytest.fixture(autouse=True)
def many_lists(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let 256 lists be many, and let vectors be compared with 4 of their 16 groups."""
    monkeypatch.setattr(list_groups, "MANY_LISTS", LISTS)
    monkeypatch.setattr(list_groups, "NEAR_GROUPS", NEAR)
    monkeypatch.setattr(torch_index, "NEAR_GROUPS", NEAR)


def codebook(sample_ND: Floats, coding: str = "PQ8x4", lists: str = f"IVF{LISTS}") -> faiss.Index:
    factory = f"{lists},{coding}" if "," not in coding else coding
    return train(sample_ND, choose(IndexConfig(factory=factory), ROWS, DIM), seed=1)


def expected_lists(groups: ListGroups, vectors_ND: Floats) -> npt.NDArray[np.int64]:
    """Return the nearest list of the nearest groups, in float64."""
    exact_ND = vectors_ND.astype(np.float64)
    near_N4 = np.argsort(-(exact_ND @ groups.centres_GD.T), axis=1)[:, :NEAR]
    allowed_NL = (groups.group_L == near_N4[:, :, None]).any(axis=1)
    return np.where(allowed_NL, exact_ND @ groups.coarse_LD.T, -np.inf).argmax(axis=1)


def test_the_list_is_the_nearest_of_the_nearest_groups(sample_ND: Floats, monkeypatch: pytest.MonkeyPatch) -> None:
    groups = groups_of(codebook(sample_ND))
    assert groups is not None
    assert len(groups.centres_GD) == 16
    assert (groups.group_L == (groups.coarse_LD @ groups.centres_GD.T).argmax(axis=1)).all()
    vectors_ND = topics(3_000, seed=3)
    lists_N = groups.lists(vectors_ND)
    assert (lists_N == expected_lists(groups, vectors_ND)).mean() >= 0.999  # equal within rounding
    assert (lists_N == (vectors_ND @ groups.coarse_LD.T).argmax(axis=1)).mean() >= 0.9
    monkeypatch.setattr(list_groups, "CALL_ROWS", 700)
    assert (groups.lists(vectors_ND) == lists_N).mean() >= 0.999


@pytest.mark.parametrize("coding", ["PQ8x4", "PQ4", "SQ8", "Flat", f"RR16,IVF{LISTS},PQ8x4"])
def test_codes_are_those_of_faiss_in_the_same_list(coding: str, sample_ND: Floats) -> None:
    made = codebook(sample_ND, coding)
    vectors_ND = topics(3_000, seed=3)
    coded = FaissCoder(made)(vectors_ND, "vectors")
    theirs = made.sa_encode(vectors_ND)
    same_N = coded.lists_N == theirs[:, 0]  # 256 lists: their number has one byte
    assert 0.9 <= same_N.mean() < 1
    np.testing.assert_array_equal(coded.codes_NB[same_N], theirs[same_N, 1:])


@pytest.mark.parametrize("coding", ["PQ8x4", "SQ8"])
def test_all_hardware_gives_the_same_lists(coding: str, sample_ND: Floats) -> None:
    made = codebook(sample_ND, coding)
    vectors_ND = topics(3_000, seed=3)
    (lists_N, codes_NB, distances_N), theirs = (
        code(vectors_ND, "vectors") for code in (TorchCoder(made, "cpu"), FaissCoder(made))
    )
    same_N = lists_N == theirs.lists_N
    assert same_N.mean() >= 0.999
    assert (codes_NB != theirs.codes_NB).mean() <= 0.001
    np.testing.assert_allclose(distances_N[same_N], theirs.distances_N[same_N], rtol=1e-4, atol=1e-6)


def test_segments_of_any_size_are_coded_alike(sample_ND: Floats) -> None:
    made = codebook(sample_ND)
    vectors_ND = topics(3_000, seed=3).astype(np.float16)
    whole = build_part(made, vectors_ND)
    parts = [build_part(made, vectors_ND[first : first + 1_000], 300) for first in range(0, 3_000, 1_000)]
    sizes_L = np.sum([part.list_sizes_L for part in parts], axis=0)
    assert np.abs(sizes_L.astype(int) - whole.list_sizes_L.astype(int)).sum() <= 6  # equal within rounding
    distances_N = np.concatenate([part.distances_N for part in parts])
    assert np.isclose(distances_N, whole.distances_N, rtol=1e-4).mean() >= 0.999


def test_few_lists_and_graphs_are_left_to_faiss(sample_ND: Floats) -> None:
    assert groups_of(codebook(sample_ND, lists="IVF255")) is None
    assert groups_of(codebook(sample_ND, lists=f"IVF{LISTS}_HNSW8")) is None
