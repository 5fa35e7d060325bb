"""The rule of `factory: auto`, and the errors for factory strings that cannot be used."""

from pathlib import Path

import faiss
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dpr.errors import IndexBuildError
from dpr.index.choose import choose, keep
from dpr.index.faiss_file import write_faiss
from dpr.index.shards import open_shard
from dpr.index.training import train
from dpr.recipe_index import IndexConfig


@pytest.mark.parametrize(
    ("rows", "dim", "factory"),
    [
        (1, 384, "Flat"),
        (999, 384, "Flat"),
        (1_000, 384, "IVF16,PQ192x4"),
        (4_500, 384, "IVF64,PQ192x4"),
        (20_958, 384, "IVF512,PQ192x4"),
        (100_000, 384, "IVF2048,PQ192x4"),
        (1_000_000, 384, "IVF16384,PQ192x4"),
        (21_000_000, 768, "IVF16384,PQ384x4"),
        (100_000_000, 768, "IVF32768,PQ384x4"),
        (10_000_000_000, 768, "IVF65536,PQ384x4"),
        (5_000, 50, "IVF128,PQ25x4"),
        (5_000, 51, "IVF128,PQ17x4"),
        (5_000, 97, "IVF128,SQ8"),
        (5_000, 7, "IVF128,SQ8"),
    ],
)
def test_auto_is_the_documented_rule(rows: int, dim: int, factory: str) -> None:
    plan = choose(IndexConfig(), rows, dim)
    assert plan.factory == factory
    assert plan.mergeable
    assert plan.min_train_rows <= plan.train_rows <= rows
    assert plan.reasons


@pytest.mark.parametrize(
    ("rows", "shards", "factory"),
    [(1_000_000, 4, "IVF4096,PQ192x4"), (1_000_000, 1, "IVF16384,PQ192x4"), (1_000, 64, "IVF1,PQ192x4")],
)
def test_a_list_of_a_shard_is_long_enough_for_the_room_that_it_takes(rows: int, shards: int, factory: str) -> None:
    plan = choose(IndexConfig(shards=shards), rows, 384)
    assert plan.factory == factory
    assert any(f" / {shards} shards" in reason for reason in plan.reasons) == (shards > 1)


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
    ],
)
def test_what_can_be_merged_from_parts(factory: str, mergeable: bool) -> None:
    plan = choose(IndexConfig(factory=factory), 5_000, 16)
    assert plan.mergeable == mergeable
    assert any("cannot be merged" in reason for reason in plan.reasons) != mergeable


@pytest.mark.parametrize(
    ("config", "rows", "message"),
    [
        ({"factory": "Nonsense"}, 5_000, "could not parse index string Nonsense"),
        ({"factory": "LSH"}, 5_000, "metric == METRIC_L2"),
        ({"factory": "IVF16,PQ7"}, 5_000, "32 dimensions .The dimension of the vector .d. should be a multiple"),
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
def test_what_cannot_be_is_one_sentence(config: dict[str, object], rows: int, message: str) -> None:
    with pytest.raises(IndexBuildError, match=message) as raised:
        choose(IndexConfig.model_validate(config), rows, 32)
    assert "\n" not in str(raised.value)
    assert ".cpp" not in str(raised.value)


def test_a_sample_too_small_for_its_centroids_is_a_reason() -> None:
    small, large = (choose(IndexConfig(factory="IVF16,PQ8"), rows, 32).reasons for rows in (9_983, 9_984))
    assert any("fewer than 39 for each of 256 centroids" in reason for reason in small)
    assert not any("fewer than" in reason for reason in large)


def test_the_recipe_decides_the_sample() -> None:
    assert choose(IndexConfig(train_rows=300), 5_000, 32).train_rows == 300
    assert choose(IndexConfig(train_rows=9_000), 5_000, 32).train_rows == 5_000


KINDS = [
    "auto",
    "Flat",
    "SQ8",
    "PQ8",
    "IVF32,Flat",
    "IVF32,SQ8",
    "IVF64,PQ16",
    "OPQ8,IVF64,PQ8",
    "PCA16,IVF64,SQ8",
    "IVF32,PQ8x4fs",
    "IVF32,RaBitQ",
    "HNSW8",
    "HNSW32",
]


@pytest.mark.slow
@pytest.mark.parametrize("factory", KINDS)
def test_predicted_memory_is_that_of_the_open_index(factory: str, tmp_path: Path) -> None:
    rows, dim = 20_000, 32
    vectors_ND = faiss.rand((rows, dim), 3)
    plan = choose(IndexConfig(factory=factory), rows, dim)
    # the quality of codes does not matter here; but 512 lists must be of about equal length, since they are padded
    index = train(vectors_ND[: 5_000 if factory == "auto" else 1_000], plan, seed=1)
    index = index if "IVF" in plan.factory else faiss.IndexIDMap(index)
    index.add_with_ids(vectors_ND, np.arange(rows))
    write_faiss(index, tmp_path / "index")
    opened = faiss.serialize_index(open_shard(tmp_path / "index"))
    assert plan.memory_bytes == pytest.approx(len(opened), rel=0.02)


@settings(max_examples=40, deadline=None)
@given(
    rows=st.integers(1_000, 10**9),
    dim=st.integers(8, 1536),
    budgets=st.tuples(st.floats(1e-4, 1e3), st.floats(1e-4, 1e3)),
    shards=st.integers(1, 8),
)
def test_more_memory_never_gives_a_coarser_code_and_what_is_chosen_fits(
    rows: int, dim: int, budgets: tuple[float, float], shards: int
) -> None:
    free = choose(IndexConfig(shards=shards), rows, dim)
    widths = []
    for memory_gb in sorted(budgets):
        try:
            plan = choose(IndexConfig(memory_gb=memory_gb, shards=shards), rows, dim)
        except IndexBuildError as error:
            assert f"index.memory_gb is {memory_gb:g} and {rows} vectors need" in str(error)  # noqa: PT017
            widths.append(0)
        else:
            assert plan.memory_bytes <= memory_gb * 1e9
            assert plan.factory.partition(",")[0] == free.factory.partition(",")[0]
            widths.append(plan.bytes_per_vector)
    assert widths == sorted(widths)
    assert widths[-1] <= free.bytes_per_vector
    if sorted(budgets)[0] * 1e9 >= free.memory_bytes:
        assert widths[0] == free.bytes_per_vector


@pytest.mark.parametrize("config", [{"memory_gb": 0.3}, {"memory_gb": 3, "factory": "IVF16384,SQ8"}])
def test_too_little_memory_is_one_sentence_with_numbers(config: dict[str, object]) -> None:
    with pytest.raises(
        IndexBuildError, match=r"memory_gb is .* and 21000000 vectors need .* with .*IVF16384"
    ) as raised:
        choose(IndexConfig.model_validate(config), 21_000_000, 768)
    assert "\n" not in str(raised.value)


def test_a_trained_codebook_serves_fewer_rows_than_train_it() -> None:
    with pytest.raises(IndexBuildError, match="needs at least 64 training vectors and there are 50"):
        choose(IndexConfig(factory="IVF64,Flat"), 50, 16)
    kept, chosen = keep(IndexConfig(), "IVF64,Flat", 50, 16), choose(IndexConfig(factory="IVF64,Flat"), 100, 16)
    assert (kept.bytes_per_vector, kept.mergeable) == (chosen.bytes_per_vector, chosen.mergeable)
    assert (kept.train_rows, kept.memory_bytes) == (0, chosen.memory_bytes - 50 * kept.bytes_per_vector)
    assert not any("trained on" in reason for reason in kept.reasons)
    with pytest.raises(IndexBuildError, match="memory_gb"):
        keep(IndexConfig(memory_gb=1e-6), "IVF64,Flat", 50, 16)
