"""The rule of `factory: auto`, and what is said about factory strings that cannot be."""

import faiss
import pytest

from dpr.errors import IndexBuildError
from dpr.index.choose import choose
from dpr.index.train import train
from dpr.recipe import IndexConfig


@pytest.mark.parametrize(
    ("rows", "dim", "factory"),
    [
        (1, 384, "Flat"),
        (999, 384, "Flat"),
        (1_000, 384, "IVF16,PQ96"),
        (4_500, 384, "IVF64,PQ96"),
        (20_958, 384, "IVF512,PQ96"),
        (1_000_000, 384, "IVF4096,PQ96"),
        (21_000_000, 768, "IVF16384,PQ192"),
        (100_000_000, 768, "IVF32768,PQ192"),
        (10_000_000_000, 768, "IVF65536,PQ192"),
        (5_000, 50, "IVF128,PQ10"),
        (5_000, 97, "IVF128,SQ8"),
        (5_000, 3, "IVF128,SQ8"),
    ],
)
def test_auto_is_the_documented_rule(rows: int, dim: int, factory: str) -> None:
    plan = choose(IndexConfig(), rows, dim)
    assert plan.factory == factory
    assert plan.mergeable
    assert plan.least_train_rows <= plan.train_rows <= rows
    assert plan.reasons


@pytest.mark.parametrize(
    ("factory", "mergeable"),
    [
        ("Flat", True),
        ("SQ8", True),
        ("PQ8", True),
        ("OPQ8,PQ8", True),
        ("IVF8,Flat", True),
        ("IVF8,PQ8", True),
        ("OPQ8,IVF8,PQ8", True),
        ("PCA8,IVF8,SQ8", True),
        ("IVF8,RaBitQ", True),
        ("IVF8,PQ8x4fs", True),
        ("IVF8,RaBitQfs", True),
        ("IVF8_HNSW8,PQ8", True),
        ("HNSW8", False),
        ("PQ8x4fs", False),
        ("IVF8,PQ8,RFlat", False),
    ],
)
def test_what_can_be_merged_from_parts(factory: str, mergeable: bool) -> None:
    plan = choose(IndexConfig(factory=factory), 5_000, 16)
    assert plan.mergeable == mergeable
    assert any("cannot be merged" in reason for reason in plan.reasons) != mergeable


@pytest.mark.parametrize(
    ("config", "rows", "said"),
    [
        ({"factory": "Nonsense"}, 5_000, "could not parse index string Nonsense"),
        ({"factory": "LSH"}, 5_000, "metric == METRIC_L2"),
        ({"factory": "IVF16,PQ7"}, 5_000, "32 dimensions: The dimension of the vector .d. should be a multiple"),
        ({"factory": "IVF0,Flat"}, 5_000, "has no inverted lists"),
        ({"factory": "IDMap,Flat"}, 5_000, "leave IDMap out"),
        ({"factory": "IVF16,PQ8"}, 255, "at least 256 training vectors and there are 255"),
        ({"factory": "IVF512,Flat"}, 511, "at least 512 training vectors and there are 511"),
        ({"factory": "HNSW8,PQ8"}, 255, "at least 256 training vectors and there are 255"),
        ({"factory": "IVF4,RQ2x10"}, 1023, "at least 1024 training vectors and there are 1023"),
        ({"factory": "IVF64,Flat", "train_rows": 63}, 5_000, "at least 64 training vectors and index.train_rows is 63"),
        ({}, 0, "0 vectors to index"),
    ],
)
def test_one_sentence_for_what_cannot_be(config: dict[str, object], rows: int, said: str) -> None:
    with pytest.raises(IndexBuildError, match=said) as raised:
        choose(IndexConfig.model_validate(config), rows, 32)
    assert "\n" not in str(raised.value)
    assert ".cpp" not in str(raised.value)


def test_a_sample_too_small_for_its_centroids_is_said() -> None:
    small, large = (choose(IndexConfig(factory="IVF16,PQ8"), rows, 32).reasons for rows in (9_983, 9_984))
    assert any("fewer than 39 for each of 256 centroids" in reason for reason in small)
    assert not any("fewer than" in reason for reason in large)


def test_the_recipe_decides_the_sample() -> None:
    assert choose(IndexConfig(train_rows=300), 5_000, 32).train_rows == 300
    assert choose(IndexConfig(train_rows=9_000), 5_000, 32).train_rows == 5_000


@pytest.mark.parametrize("factory", ["auto", "Flat", "IVF32,SQ8", "IVF32,PQ8x4fs", "IVF32,RaBitQ", "HNSW8"])
def test_predicted_memory_is_that_of_the_file(factory: str) -> None:
    rows, dim = 8_000, 32
    vectors_ND = faiss.rand((rows, dim), 3)
    plan = choose(IndexConfig(factory=factory), rows, dim)
    index = train(vectors_ND[:2_000], plan, seed=1)
    index.add(vectors_ND)
    written_bytes = len(faiss.serialize_index(index))
    ids_bytes = 0 if "IVF" in plan.factory else 8 * rows
    assert plan.memory_bytes == pytest.approx(written_bytes + ids_bytes, rel=0.12)
