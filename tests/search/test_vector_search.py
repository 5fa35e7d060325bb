"""Searching a snapshot by vectors, against numpy over the same vectors and FAISS over the same index.

Shapes: Q questions, K hits, C candidates, N rows, D dimensions.
"""

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import numpy.typing as npt
import pytest

from dpr.errors import IntegrityError
from dpr.formats.deletions import DeletionSet, with_dead
from dpr.formats.manifest import DeeperSettings, ShardEntry, SnapshotBody
from dpr.formats.objects import put_object
from dpr.formats.records import ObjectRef
from dpr.index.row_ids import ROW_BITS
from dpr.index.serving_index import ServingIndex
from dpr.search.vector_search import VectorSearch
from dpr.store import LocalStore, Store
from tests.formats.samples import RemoteStore, flip_a_bit, put_segment, random_vectors, snapshot_body, some_ref

DIM, ROWS, CANDIDATES = 16, 300, 60
QUESTIONS_QD = np.random.default_rng(9).standard_normal((11, DIM)).astype(np.float32)


@dataclass(frozen=True, repr=False)
class Stored:
    """A snapshot of two segments and two shards, and its live vectors."""

    folder: Path
    body: SnapshotBody
    ids_N: npt.NDArray[np.int64]
    vectors_ND: npt.NDArray[np.float32]

    @property
    def store(self) -> Store:
        return LocalStore(self.folder)

    def best(self, ids_QC: npt.NDArray[np.int64], k: int) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.int64]]:
        """Return the exact scores and ids of the best k of some candidates."""
        exact_QN = QUESTIONS_QD.astype(np.float64) @ self.vectors_ND.T.astype(np.float64)
        place = {id_: n for n, id_ in enumerate(self.ids_N.tolist())}
        scores_QC = np.take_along_axis(exact_QN, np.vectorize(place.get)(ids_QC), axis=1)
        order_QK = np.argsort(-scores_QC, axis=1)[:, :k]
        return np.take_along_axis(scores_QC, order_QK, axis=1), np.take_along_axis(ids_QC, order_QK, axis=1)


def put_index(store: Store, folder: Path, index: faiss.Index, name: str) -> ObjectRef:
    path = folder / f"{name}.faiss"
    faiss.write_index(index, str(path))
    return put_object(store, f"indexes/{name}", path)


def body_of(body: SnapshotBody, **index_fields: Any) -> SnapshotBody:
    return body.model_copy(update={"index": body.index.model_copy(update=index_fields)})


@pytest.fixture(scope="module", params=["live rows", "dead rows too"])
def stored(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Stored:
    """The index is lossy: its scores are not those of the vectors. Its shards may hold rows that died since."""
    folder = tmp_path_factory.mktemp("search")
    store = LocalStore(folder / "store")
    entries, dead, shards, all_ids, all_vectors = [], {}, [], [], []
    trained = faiss.index_factory(DIM, "IVF4,SQ4", faiss.METRIC_INNER_PRODUCT)
    trained.train(random_vectors(1000, DIM, seed=7).astype(np.float32))
    for number in (0, 5):
        vectors_ND = random_vectors(ROWS, DIM, seed=number)
        dead[number] = np.arange(number, ROWS, 10, dtype=np.uint32)
        entry = with_dead(put_segment(store, folder, number, vectors_ND), dead[number])
        live = np.setdiff1d(np.arange(ROWS), dead[number])
        ids_N, live_ND = (number << ROW_BITS) | live, vectors_ND[live].astype(np.float32)
        held = live if request.param == "live rows" else np.arange(ROWS)
        shard = faiss.clone_index(trained)
        shard.add_with_ids(vectors_ND[held].astype(np.float32), (number << ROW_BITS) | held)
        ref = put_index(store, folder, shard, f"i{number}")
        shards.append(ShardEntry(rows=len(held), live_rows=len(live), segments=[number], left_out=None, object=ref))
        entries.append(entry)
        all_ids.append(ids_N)
        all_vectors.append(live_ND)
    ids_N, vectors_ND = np.concatenate(all_ids), np.concatenate(all_vectors)
    body = snapshot_body(
        len(ids_N), DIM, segments=entries, next_segment_number=6, deletions=DeletionSet(dead).put(store)
    )
    body = body_of(body, rows=len(ids_N), nprobe=4, rescore=CANDIDATES, shards=shards)
    return Stored(folder / "store", body, ids_N, vectors_ND)


def candidates(stored: Stored, count: int, nprobe: int = 4) -> tuple[Any, Any]:
    """Return what plain FAISS finds in both shards that lives."""
    found = []
    for shard in stored.body.index.shards:
        index = faiss.read_index(str(stored.folder / shard.object.name))
        index.nprobe = nprobe
        found.append(index.search(QUESTIONS_QD, index.ntotal))
    scores_QC, ids_QC = (np.concatenate(arrays, axis=1) for arrays in zip(*found, strict=True))
    scores_QC[~np.isin(ids_QC, stored.ids_N)] = -np.inf
    order_QC = np.argsort(-scores_QC, axis=1, kind="stable")[:, :count]
    return np.take_along_axis(scores_QC, order_QC, axis=1), np.take_along_axis(ids_QC, order_QC, axis=1)


def assert_same(
    found: tuple[npt.NDArray[Any], npt.NDArray[Any]], expected: tuple[npt.NDArray[Any], npt.NDArray[Any]]
) -> None:
    np.testing.assert_array_equal(found[1], expected[1])
    np.testing.assert_allclose(found[0], expected[0], rtol=1e-6)


@pytest.mark.parametrize("kind", [LocalStore, RemoteStore])
def test_exact_search_is_brute_force_over_the_live_rows(
    stored: Stored, kind: type[LocalStore], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DPR_CACHE", str(tmp_path))
    search = VectorSearch.open(kind(stored.folder), stored.body)
    everything_QN = np.tile(stored.ids_N, (len(QUESTIONS_QD), 1))
    assert_same(search.exact(QUESTIONS_QD, 25), stored.best(everything_QN, 25))


@pytest.mark.parametrize(("k", "count"), [(1, CANDIDATES), (20, CANDIDATES), (30, 90), (100, 300)])
def test_candidates_of_the_index_are_rescored_from_the_stored_vectors(stored: Stored, k: int, count: int) -> None:
    """Settings are tuned for 20 hits, so more hits take as many more candidates."""
    search = VectorSearch.open(stored.store, stored.body)
    expected = stored.best(candidates(stored, count)[1], k)
    assert_same(search.top(QUESTIONS_QD, k), expected)


def test_only_so_many_lists_are_visited(stored: Stored) -> None:
    search = VectorSearch.open(stored.store, body_of(stored.body, nprobe=1))
    expected = stored.best(candidates(stored, CANDIDATES, nprobe=1)[1], 10)
    assert_same(search.top(QUESTIONS_QD, 10), expected)
    assert (expected[1] != stored.best(candidates(stored, CANDIDATES)[1], 10)[1]).any()


@pytest.mark.parametrize(("k", "count", "nprobe"), [(20, CANDIDATES, 1), (21, 100, 4), (50, 100, 4), (80, 160, 4)])
def test_more_hits_than_settings_were_tuned_for_are_searched_by_deeper_settings(
    stored: Stored, k: int, count: int, nprobe: int
) -> None:
    deeper = DeeperSettings(nprobe=4, rescore=100, at=50)
    search = VectorSearch.open(stored.store, body_of(stored.body, nprobe=1, deeper=deeper))
    assert_same(search.top(QUESTIONS_QD, k), stored.best(candidates(stored, count, nprobe)[1], k))


def test_without_rescoring_the_scores_of_the_index_are_final(stored: Stored) -> None:
    search = VectorSearch.open(stored.store, body_of(stored.body, rescore=0))
    found, expected = search.top(QUESTIONS_QD, 10), candidates(stored, 10)
    assert_same(found, expected)
    assert (found[1] != stored.best(candidates(stored, CANDIDATES)[1], 10)[1]).any()


def test_more_hits_than_there_are_rows_end_with_none(stored: Stored) -> None:
    search = VectorSearch.open(stored.store, stored.body)
    for scores_QK, ids_QK in (search.top(QUESTIONS_QD, 700), search.exact(QUESTIONS_QD, 700)):
        rows = len(stored.ids_N)
        assert (ids_QK[:, rows:] == -1).all()
        assert np.isneginf(scores_QK[:, rows:]).all()
        assert (np.sort(ids_QK[:, :rows]) == np.sort(stored.ids_N)).all()
        assert len(search.segments.hits(scores_QK[0], ids_QK[0])) == rows


def test_an_index_of_other_dimensions_is_never_searched(stored: Stored, tmp_path: Path) -> None:
    index = faiss.index_factory(DIM + 8, "IDMap,Flat", faiss.METRIC_INNER_PRODUCT)
    rows = len(stored.ids_N)
    index.add_with_ids(np.ones((rows, DIM + 8), np.float32), stored.ids_N)
    ref = put_index(stored.store, tmp_path, index, "wide")
    shard = ShardEntry(rows=rows, live_rows=rows, segments=list(range(6)), left_out=None, object=ref)
    with pytest.raises(IntegrityError, match="has 24 dimensions, and encoder e gives 16"):
        VectorSearch.open(stored.store, body_of(stored.body, shards=[shard]))


def test_what_another_encoder_made_is_never_searched(stored: Stored) -> None:
    codebook = stored.body.codebook.model_copy(update={"object": some_ref("codebooks/f/c-0.faiss")})
    with pytest.raises(IntegrityError, match="snapshot of encoder e names codebooks/f"):
        VectorSearch.open(stored.store, stored.body.model_copy(update={"codebook": codebook}))


@pytest.mark.parametrize("kind", ["segment", "deletions", "shard"])
def test_nothing_damaged_is_searched(stored: Stored, tmp_path: Path, kind: str) -> None:
    shutil.copytree(stored.folder, tmp_path / "store")
    body = stored.body
    assert body.deletions
    refs = {"segment": body.segments[1].object, "deletions": body.deletions, "shard": body.index.shards[0].object}
    flip_a_bit(tmp_path / "store" / refs[kind].name)
    with pytest.raises(IntegrityError, match=f"object {refs[kind].name} .* its record says"):
        VectorSearch.open(LocalStore(tmp_path / "store"), body)


@pytest.mark.parametrize("rescore", [0, 60])
@pytest.mark.parametrize("living", [ROWS, 20])
@pytest.mark.parametrize("k", [5, 45, 1_000])
def test_k_hits_come_back_whenever_there_are_k(tmp_path: Path, k: int, living: int, rescore: int) -> None:
    """Though a question visits one list of 64, which may hold fewer, or none that lives."""
    store = LocalStore(tmp_path / "store")
    vectors_ND = random_vectors(ROWS, DIM, seed=1)
    dead = {0: np.random.default_rng(2).permutation(ROWS)[living:].astype(np.uint32)}
    dead[0].sort()
    entry = with_dead(put_segment(store, tmp_path, 0, vectors_ND), dead[0])
    index = faiss.index_factory(DIM, "IVF64,Flat", faiss.METRIC_INNER_PRODUCT)
    index.train(random_vectors(4_000, DIM, seed=7).astype(np.float32))
    index.add(vectors_ND.astype(np.float32))
    ref = put_index(store, tmp_path, index, "i0")
    shards = [ShardEntry(rows=ROWS, live_rows=living, segments=[0], left_out=None, object=ref)]
    body = snapshot_body(living, DIM, segments=[entry], next_segment_number=1, deletions=DeletionSet(dead).put(store))
    search = VectorSearch.open(store, body_of(body, rows=living, nprobe=1, rescore=rescore, shards=shards))
    live = np.setdiff1d(np.arange(ROWS), dead[0])
    scores_QK, ids_QK = search.top(QUESTIONS_QD, k)
    for question_D, scores_K, ids_K in zip(QUESTIONS_QD, scores_QK, ids_QK, strict=True):
        found = ids_K[ids_K >= 0]
        assert len(found) == len(set(found.tolist())) == min(k, living)
        assert np.isin(found, live).all()
        exact = vectors_ND[found].astype(np.float64) @ question_D
        np.testing.assert_allclose(scores_K[: len(found)], exact, atol=1e-5)
        assert (np.diff(scores_K[: len(found)]) <= 0).all()


def test_a_list_without_vectors_does_not_count_as_visited() -> None:
    """All lists nearest to the questions are empty; the first that holds vectors is visited in their place."""
    centroids_LD = np.eye(DIM, dtype=np.float32) * np.arange(DIM, 0, -1, dtype=np.float32)[:, None]
    index = faiss.IndexIVFFlat(faiss.IndexFlatIP(DIM), DIM, DIM, faiss.METRIC_INNER_PRODUCT)
    index.quantizer.add(centroids_LD)
    index.is_trained = True
    vectors_ND = np.repeat(np.eye(DIM, dtype=np.float16)[[9, 12]], 30, axis=0)
    index.add(vectors_ND.astype(np.float32))
    _, ids_QK = ServingIndex([index]).search(np.ones((2, DIM), np.float32), 20, nprobe=1)
    assert (ids_QK[:, 0] >= 0).all()
    assert set(ids_QK.reshape(-1).tolist()) <= set(range(30))
