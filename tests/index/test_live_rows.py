"""An index never finds dead rows: it finds k live hits, those of an index that never held the dead rows.

Shapes: N rows, Q questions, K hits.
"""

from functools import cache

import faiss
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dpr.index.candidates import first_of
from dpr.index.live_rows import LiveRows
from dpr.index.serving_index import ServingIndex

FACTORIES = ("Flat", "IVF16,Flat", "IVF16,PQ8x4", "IVF16,SQ8", "OPQ8,IVF16,PQ8x4", "PCA16,IVF16,Flat")


@given(
    lives=st.dictionaries(st.integers(0, 40), st.lists(st.booleans(), max_size=9), max_size=6),
    ids=st.lists(st.tuples(st.integers(0, 45), st.integers(0, 8)), max_size=30),
)
def test_live_rows_are_those_of_the_masks(lives: dict[int, list[bool]], ids: list[tuple[int, int]]) -> None:
    rows = LiveRows({number: np.array(mask, np.bool_) for number, mask in lives.items()})
    ids = [(number, row) for number, row in ids if number not in lives or row < len(lives[number])]
    encoded = np.array([number << 32 | row for number, row in ids] + [-1], np.int64)
    expected = [number in lives and lives[number][row] for number, row in ids] + [False]
    assert rows.contain(encoded).tolist() == expected


@cache
def shards_of(factory: str) -> tuple[faiss.Index, list[faiss.Index], np.ndarray]:
    vectors_ND = np.random.default_rng(1).normal(size=(3_000, 32)).astype(np.float32)
    codebook = faiss.index_factory(32, factory, faiss.METRIC_INNER_PRODUCT)
    if factory.startswith("OPQ"):  # any rotation will do, and 50 rounds of training take half a minute
        faiss.downcast_VectorTransform(codebook.chain.at(0)).niter = 2
    codebook.train(vectors_ND)
    shards = []
    for number in range(3):
        shard = faiss.clone_index(codebook)
        if not isinstance(shard, (faiss.IndexIVF, faiss.IndexPreTransform)):
            shard = faiss.IndexIDMap(shard)
        shard.add_with_ids(vectors_ND[number::3], (np.int64(number) << 32) + np.arange(1_000))
        shards.append(shard)
    return codebook, shards, vectors_ND


def plain_search(index: faiss.Index, questions_QD: np.ndarray, k: int, nprobe: int) -> tuple[np.ndarray, np.ndarray]:
    """The hits of FAISS itself, from the nearest lists that hold vectors if there are lists."""
    core = index
    if isinstance(core, faiss.IndexPreTransform):
        questions_QD = faiss.downcast_VectorTransform(core.chain.at(0)).apply(questions_QD)
        core = faiss.downcast_index(core.index)
    if not isinstance(core, faiss.IndexIVF):
        return index.search(questions_QD, k)  # type: ignore[no-any-return]
    scores_QL = questions_QD @ core.quantizer.reconstruct_n(0, core.nlist).T
    scores_QL[:, [core.invlists.list_size(number) == 0 for number in range(core.nlist)]] = -np.inf
    lists_QP = np.argsort(-scores_QL, axis=1)[:, :nprobe]
    coarse_QP = np.take_along_axis(scores_QL, lists_QP, axis=1)
    core.nprobe = nprobe
    return core.search_preassigned(questions_QD, k, lists_QP, coarse_QP)  # type: ignore[no-any-return]


@pytest.mark.slow
@pytest.mark.parametrize("dead_share", [0.01, 0.3, 0.97])
@pytest.mark.parametrize("factory", FACTORIES)
def test_hits_are_those_of_an_index_of_the_living_alone(factory: str, dead_share: float) -> None:
    rng = np.random.default_rng(0)
    codebook, shards, vectors_ND = shards_of(factory)
    masks = {number: rng.random(1_000) >= dead_share for number in range(3)}
    masks[1][:] = False  # a shard of which nothing lives
    living = faiss.clone_index(codebook)
    if not isinstance(living, (faiss.IndexIVF, faiss.IndexPreTransform)):
        living = faiss.IndexIDMap(living)
    for number, mask in masks.items():
        rows = np.flatnonzero(mask)
        living.add_with_ids(vectors_ND[number::3][rows], (np.int64(number) << 32) + rows)
    questions_QD = rng.normal(size=(40, 32)).astype(np.float32)
    expected_scores_QK, expected_ids_QK = plain_search(living, questions_QD, 20, 5)
    shares = [1 - mask.mean() for mask in masks.values()]
    scores_QK, ids_QK = ServingIndex(shards, LiveRows(masks), shares).search(questions_QD, 20, 5)
    there_QK = expected_ids_QK >= 0
    assert ((ids_QK >= 0) == there_QK).all()
    np.testing.assert_allclose(scores_QK[there_QK], expected_scores_QK[there_QK], rtol=1e-5, atol=1e-5)
    assert all(masks[id_ >> 32][id_ & 0xFFFFFFFF] for id_ in ids_QK[there_QK].tolist())
    assert all(len(set(row)) == len(row) for row in (ids_K[ids_K >= 0].tolist() for ids_K in ids_QK))


def test_the_first_that_live_keep_their_order() -> None:
    scores, ids = np.array([[9.0, 8, 7, 6]], np.float32), np.array([[4, 3, 2, -1]])
    live = np.array([[False, True, True, False]])
    found_scores, found_ids = first_of(scores, ids, live, 3)
    assert found_ids.tolist() == [[3, 2, -1]]
    assert found_scores.tolist() == [[8.0, 7.0, -np.inf]]
