"""Shards are searched as one index: against that index."""

import weakref
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import numpy.typing as npt
import pytest

from dpr.index import shards
from dpr.index.candidates import search
from dpr.index.choose import choose
from dpr.index.coding import build_part
from dpr.index.cost import search_cost
from dpr.index.faiss_file import read_faiss, write_faiss
from dpr.index.kinds import inverted
from dpr.index.live_parts import PartRef
from dpr.index.merging import merge
from dpr.index.part import write_part
from dpr.index.recall import KnownQuestions
from dpr.index.serving_index import ServingIndex
from dpr.index.shards import open_shard
from dpr.index.training import train
from dpr.index.tune import tune
from dpr.recipe_index import IndexConfig

CODEBOOK = "c0de" * 16
KINDS = [
    "Flat",
    "SQ8",
    "PQ4x4",
    "IVF8,Flat",
    "IVF8,PQ4x4",
    "OPQ4,IVF8,PQ4x4",
    "IVF8,SQ8",
    "IVF8,PQ4x4fs",
    "IVF8,RaBitQ",
    "IVF8,RaBitQfs",
    "IVF8_HNSW8,PQ4x4",
]


def merged(factory: str, runs: Sequence[Sequence[Any]], vectors_ND: npt.NDArray[Any], folder: Path) -> ServingIndex:
    """Merge an index whose shards hold the given runs of segments."""
    codebook = train(vectors_ND[:300].astype(np.float32), choose(IndexConfig(factory=factory), 1500, 16), seed=1)
    opened = []
    for number, run in enumerate(runs):
        refs = []
        for segment in run:
            path = folder / f"part-{segment.number}"
            write_part(build_part(codebook, segment.vectors_ND), path, CODEBOOK)
            refs.append(PartRef(segment.number, path, len(segment.vectors_ND), segment.dead, CODEBOOK))
        merge(codebook, refs, folder / f"{len(runs)}-{number}")
        opened.append(open_shard(folder / f"{len(runs)}-{number}"))
    return ServingIndex(opened)


@pytest.mark.parametrize("factory", KINDS)
def test_shards_answer_as_the_one_index(
    factory: str,
    vectors_ND: npt.NDArray[np.float16],
    questions_QD: npt.NDArray[np.float32],
    segments: Sequence[Any],
    tmp_path: Path,
) -> None:
    one = merged(factory, [segments], vectors_ND, tmp_path)
    three = merged(factory, [segments[:1], segments[1:3], segments[3:]], vectors_ND, tmp_path)
    assert one.rows == three.rows == sum(len(segment.live) for segment in segments)
    assert (one.lists, one.visited(3)) == (three.lists, pytest.approx(three.visited(3)))
    settings: list[tuple[Any, ...]] = [(1, 1), (20, 3), (100, 8)]
    if one.lists:
        margin = float(np.median(one.scores_below(questions_QD, 5)))
        assert margin == pytest.approx(float(np.median(three.scores_below(questions_QD, 5))), rel=1e-5)
        settings += [(20, 3, margin, 5), (2, 4, margin, 5)]
    for k, *how in settings:
        scores_QK, ids_QK = one.search(questions_QD, k, *how)
        found_scores_QK, found_ids_QK = three.search(questions_QD, k, *how)
        # sums are rounded by where a vector lies: FAISS takes four codes of a list, or a block of a table, at once
        np.testing.assert_allclose(found_scores_QK, scores_QK, rtol=2e-6, atol=1e-6)
        for question, scores in enumerate(scores_QK):
            # which of several vectors with the very last score are found is chance in both
            last = scores[-1] * (1 + 1e-5) if scores[-1] > 0 else scores[-1] * (1 - 1e-5)
            for some_QK, others_QK in ((ids_QK, found_ids_QK), (found_ids_QK, ids_QK)):
                settled = set(some_QK[question][scores > last].tolist())
                assert settled <= set(others_QK[question].tolist())


def test_shards_are_tuned_as_the_one_index(
    vectors_ND: npt.NDArray[np.float16],
    questions_QD: npt.NDArray[np.float32],
    segments: Sequence[Any],
    tmp_path: Path,
) -> None:
    stored = {segment.number: segment.vectors_ND for segment in segments}
    live = np.concatenate([segment.live_ids for segment in segments])

    def fetch(ids: npt.NDArray[np.int64]) -> npt.NDArray[np.float16]:
        return np.stack([stored[int(i) >> 32][int(i) & 0xFFFFFFFF] for i in ids])

    scores_QN = questions_QD.astype(np.float64) @ fetch(live).T.astype(np.float64)
    order_QK = np.argsort(-scores_QN, axis=1, kind="stable")[:, :20]
    scores_QK = np.take_along_axis(scores_QN, order_QK, axis=1).astype(np.float32)
    known = KnownQuestions(questions_QD, scores_QK, live[order_QK], lambda _: fetch)
    tuned = [
        tune(merged("IVF8,PQ4x4", runs, vectors_ND, tmp_path), known, IndexConfig(), 20)
        for runs in ([segments], [segments[:2], segments[2:]])
    ]
    assert tuned[0].settings == tuned[1].settings
    assert tuned[0].recall == tuned[1].recall
    assert tuned[1].predicted_ms > tuned[0].predicted_ms  # coarse centroids are compared in each shard


@pytest.mark.parametrize("factory", ["IVF8,PQ4x4", "OPQ4,IVF8,PQ4x6", "IVF8_HNSW8,SQ8"])
def test_a_shard_outlives_the_one_whose_centroids_it_shares(
    factory: str, vectors_ND: npt.NDArray[np.float16], questions_QD: npt.NDArray[np.float32], tmp_path: Path
) -> None:
    """A later snapshot may have the second shard of an earlier one, and not the first."""
    index = train(vectors_ND.astype(np.float32), choose(IndexConfig(factory=factory), 1500, 16), seed=1)
    index.add(vectors_ND.astype(np.float32))
    write_faiss(index, tmp_path / "index")
    alone = search(open_shard(tmp_path / "index"), questions_QD, 20, 3)
    first = open_shard(tmp_path / "index")
    second = open_shard(tmp_path / "index", first)
    assert int(inverted(second).quantizer.this) == int(inverted(first).quantizer.this)
    is_there = weakref.ref(first)
    del first
    assert is_there() is None
    third = open_shard(tmp_path / "index", second)
    del second
    for expected, found in zip(alone, search(third, questions_QD, 20, 3), strict=True):
        np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("factory", ["IVF8,PQ8x4", "IVF8,PQ1x4"])
def test_codes_of_four_bits_are_searched_in_blocks(
    factory: str, vectors_ND: npt.NDArray[np.float16], questions_QD: npt.NDArray[np.float32], tmp_path: Path
) -> None:
    plain = train(vectors_ND.astype(np.float32), choose(IndexConfig(factory=factory), 1500, 16), seed=1)
    plain.add_with_ids(vectors_ND.astype(np.float32), np.arange(1500) << 32)
    write_faiss(plain, tmp_path / "index")
    fast = open_shard(tmp_path / "index")
    assert str(tmp_path / "index") not in Path("/proc/self/maps").read_text()  # the mappings are released
    (tmp_path / "index").unlink()
    assert isinstance(fast, faiss.IndexIVFPQFastScan)
    assert (fast.ntotal, fast.nlist) == (1500, 8)
    for k, nprobe in ((5, 1), (20, 3), (300, 8)):
        scores_QK, ids_QK = search(fast, questions_QD, k, nprobe)
        expected_scores_QK, _ = search(plain, questions_QD, k, nprobe)
        found = np.isfinite(scores_QK)
        np.testing.assert_array_equal(found, np.isfinite(expected_scores_QK))
        # tables of products are rounded to 256 steps, so that each score is off by one in some hundred
        spread = np.ptp(search(plain, questions_QD, 1500, 8)[0])
        np.testing.assert_allclose(scores_QK[found], expected_scores_QK[found], atol=0.01 * spread)
        for question_D, scores_K, ids_K in zip(questions_QD, scores_QK, ids_QK, strict=True):
            rows = ids_K[ids_K >= 0] >> 32
            assert len(np.unique(rows)) == len(rows)
            decoded_KD = plain.sa_decode(plain.sa_encode(vectors_ND[rows].astype(np.float32)))
            np.testing.assert_allclose(scores_K[ids_K >= 0], decoded_KD @ question_D, atol=0.01 * spread)


@pytest.mark.slow
@pytest.mark.parametrize("factory", ["IVF8,PQ4x6", "IVF8,SQ8", "OPQ4,IVF8,PQ4x4", "HNSW8"])
def test_other_kinds_are_searched_as_they_are(
    factory: str, vectors_ND: npt.NDArray[np.float16], tmp_path: Path
) -> None:
    index = train(vectors_ND.astype(np.float32), choose(IndexConfig(factory=factory), 1500, 16), seed=1)
    index.add(vectors_ND.astype(np.float32))
    write_faiss(index, tmp_path / "index")
    found = open_shard(tmp_path / "index")
    assert bytes(faiss.serialize_index(found)) == bytes(faiss.serialize_index(read_faiss(tmp_path / "index")))


def test_many_centroids_are_ranked_by_their_codes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    topics_TD = rng.normal(size=(60, 64))
    drawn = [topics_TD[rng.integers(0, 60, rows)] + 0.7 * rng.normal(size=(rows, 64)) for rows in (6_000, 40)]
    vectors_ND, questions_QD = ((d / np.linalg.norm(d, axis=1, keepdims=True)).astype(np.float32) for d in drawn)
    plain = train(vectors_ND, choose(IndexConfig(factory="IVF1024,PQ8x4"), 6_000, 64), seed=1)
    plain.add(vectors_ND)
    write_faiss(plain, tmp_path / "index")
    by_code = open_shard(tmp_path / "index")
    monkeypatch.setattr(shards, "RANKED_BY_CODE_FROM_LISTS", 1_025)
    exact = open_shard(tmp_path / "index")
    quantizers = [faiss.downcast_index(index.quantizer) for index in (by_code, exact)]
    assert [type(quantizer) for quantizer in quantizers] == [faiss.IndexRefineFlat, faiss.IndexFlatIP]
    lists, exact_lists = (quantizer.search(questions_QD, 32)[1] for quantizer in quantizers)
    same = [len(np.intersect1d(*pair)) / 32 for pair in zip(lists, exact_lists, strict=True)]
    assert np.mean(same) >= 0.95
    coarse_LD = plain.quantizer.reconstruct_n(0, 1024)
    scores_QL = np.take_along_axis(questions_QD @ coarse_LD.T, lists, axis=1)
    assert (np.diff(scores_QL, axis=1) <= 1e-5).all()
    # all lists visited, all vectors are found
    ids_QK = search(by_code, questions_QD, 6_000, 1_024)[1]
    assert (np.sort(ids_QK) == np.arange(6_000)).all()
    cost, exact_cost = (search_cost(ServingIndex([index])) for index in (by_code, exact))
    assert cost.centroid_ns < exact_cost.centroid_ns
    assert cost.list_ns > exact_cost.list_ns
