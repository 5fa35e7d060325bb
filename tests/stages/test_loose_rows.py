"""Which rows are loose, and that they are found, night after night.

Shapes: N rows, D dimensions.
"""

import json
from pathlib import Path

import faiss
import numpy as np
import numpy.typing as npt
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dpr.formats.loose import LooseRows, read_loose
from dpr.formats.manifest import SnapshotBody
from dpr.index.loose_index import max_far, max_new
from dpr.operations.verify import verify
from dpr.search.vector_search import VectorSearch
from dpr.stages.build import MAX_FAR, farthest_rows
from dpr.stages.loose_rows import choose_loose
from dpr.store import LocalStore
from tests.collection import Collection, FirstNights
from tests.conftest import let_no_row_be_loose
from tests.formats.samples import flip_a_bit, random_vectors
from tests.tiny import random_texts

INDEX = {"factory": "IVF16,SQ8", "nprobe": 1, "rescore": 50, "retrain": "never"}


def some_far(distances: list[float]) -> LooseRows:
    """Return rows 0, 1, … of segment 7."""
    rows = LooseRows.of_segment(7, np.arange(len(distances)), random_vectors(len(distances), 4))
    return LooseRows(rows.segments_N, rows.rows_N, np.array(distances, np.float32), rows.vectors_ND)


@given(
    missing=st.lists(st.booleans(), min_size=1, max_size=60),
    far=st.lists(st.sampled_from([0.0, 1.0, 1.5, 2.0]), min_size=60, max_size=60),
    rows=st.integers(60, 4_000),
    any_in_shards=st.booleans(),
)
def test_few_new_rows_stay_loose_and_of_many_the_farthest(
    missing: list[bool], far: list[float], rows: int, any_in_shards: bool
) -> None:
    masks = {3: np.ones(max_new(rows) if rows % 2 else 0, np.bool_), 7: np.array(missing)}
    loose = choose_loose(masks, some_far(far[: len(missing)]), rows, any_in_shards=any_in_shards)
    count, of_all = (sum(int(mask.sum()) for mask in each.values()) for each in (loose, masks))
    assert all((loose[number] <= mask).all() for number, mask in masks.items())
    if any_in_shards and of_all <= max_new(rows) + max_far(rows):
        assert count == of_all
        return
    there = [distance for distance, is_missing in zip(far, missing, strict=False) if is_missing and distance]
    assert count in (min(len(there), max_far(rows)), 0)
    assert any_in_shards or count < of_all or not of_all
    chosen = [far[row] for row in np.flatnonzero(loose[7])]
    assert sorted(chosen, reverse=True) == sorted(there, reverse=True)[: len(chosen)]


def test_the_farthest_rows_of_a_part_are_kept_with_their_vectors() -> None:
    vectors_ND = random_vectors(3_000, 8)
    distances_N = np.random.default_rng(1).random(3_000).astype(np.float32)
    found = farthest_rows(distances_N, vectors_ND, 0.5)
    assert len(found) == MAX_FAR
    assert sorted(np.argsort(-distances_N)[:MAX_FAR].tolist()) == found.rows_N.tolist()
    assert (found.vectors_ND == vectors_ND[found.rows_N]).all()
    assert (found.distances_N == distances_N[found.rows_N]).all()
    assert farthest_rows(distances_N, vectors_ND, 0.99).rows_N.tolist() == np.flatnonzero(distances_N > 0.99).tolist()
    assert len(farthest_rows(distances_N, vectors_ND, None)) == 0


@pytest.fixture
def collection(tmp_path: Path, first_nights: FirstNights) -> Collection:
    """A first night of 1,200 passages, of whose 16 lists a question visits one."""
    return first_nights.copy(
        tmp_path / "collection",
        random_texts(1_200),
        index=INDEX,
        gate={"min_recall": 0},
        resources={"segment_rows": 500},
    )


def loose_ids(collection: Collection, body: SnapshotBody) -> set[str]:
    """Return the ids of loose passages, read with pyarrow alone; their vectors must be those of their segments."""
    if body.index.loose is None:
        return set()
    found = set()
    segments = {e.number: pq.read_table(collection.file(e.object.name)) for e in body.segments}
    for row in pq.read_table(collection.file(body.index.loose.name)).to_pylist():
        passage = segments[row["segment"]].slice(row["row"], 1).to_pylist()[0]
        assert passage["embedding"] == row["embedding"]
        found.add(passage["id"])
    assert len(found) == body.index.loose_rows
    return found


def nearest(collection: Collection, number: int, ids: list[str]) -> list[list[str]]:
    """Ask for passages by their own vectors, with all lists but one left out."""
    rows = collection.live_rows(collection.body(number))
    search = VectorSearch.open(collection.store, collection.body(number))
    _, found_QK = search.top(np.stack([rows[id_][1] for id_ in ids]), 5)
    return [[hit.id for hit in search.segments.hits(np.zeros(5, np.float32), ids_K)] for ids_K in found_QK]


@pytest.mark.slow
def test_what_is_new_is_loose_until_it_is_too_much(collection: Collection) -> None:
    first = collection.body(1).index
    assert (first.loose, first.loose_rows, len(first.shards)) == (None, 0, 1)
    new = {f"new{n}": f"w{n} w{199 - n} w{n}" for n in range(30)}
    collection.corpus |= new
    second = collection.night().snapshot.body
    assert loose_ids(collection, second) == set(new)
    assert second.index.shards == first.shards  # nothing was merged
    assert [found[0] for found in nearest(collection, 2, list(new))] == list(new)

    # one is edited, one goes, and a loose row of before is kept without looking into its segment
    collection.corpus["new1"] = "w5 w5 w5"
    del collection.corpus["new2"]
    third = collection.night().snapshot.body
    assert loose_ids(collection, third) == set(new) - {"new2"}
    assert verify(collection.store, [2, 3], deep=True)[1] == []

    collection.corpus |= random_texts(max_new(1_700) + max_far(1_700), name="more", seed=9)
    fourth = collection.night().snapshot.body
    assert loose_ids(collection, fourth) == set()
    assert [shard.live_rows for shard in fourth.index.shards] == [1_200, fourth.passages - 1_200]
    assert verify(collection.store, [4], deep=True)[1] == []


@pytest.mark.slow
def test_rows_far_from_every_centroid_stay_loose(
    tmp_path: Path, encoder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dpr.stages.train.MIN_NEAR_ROWS", 50)
    let_no_row_be_loose(monkeypatch)
    collection = Collection(
        tmp_path,
        encoder,
        random_texts(1_200),
        index={**INDEX, "seed": 11},
        gate={"min_recall": 0},
        resources={"segment_rows": 500},
    )
    body = collection.night().snapshot.body
    assert body.codebook.far_distance is not None
    far = loose_ids(collection, body)
    assert 0 < len(far) <= max_far(1_200)
    vectors = collection.live_rows(body)
    distances = far_distances(collection, body, {id_: vector for id_, (_, vector) in vectors.items()})
    beyond = {id_ for id_, distance in distances.items() if distance > body.codebook.far_distance}
    farthest = sorted(beyond, key=lambda id_: -distances[id_])[: max_far(1_200)]
    assert far == set(farthest)

    collection.corpus["new"] = "w1 w2"
    again = collection.night().snapshot.body
    assert far <= loose_ids(collection, again) <= far | {"new"}
    assert verify(collection.store, [1, 2], deep=True)[1] == []


def far_distances(
    collection: Collection, body: SnapshotBody, vectors: dict[str, npt.NDArray[np.float16]]
) -> dict[str, float]:
    """Return how far each vector is from its nearest centroid, with FAISS for reading and numpy for the rest."""
    codebook = faiss.read_index(str(collection.file(body.codebook.object.name)))
    coarse_LD = codebook.quantizer.reconstruct_n(0, codebook.nlist)
    whole_ND = np.stack(list(vectors.values())).astype(np.float32)
    residuals_ND = whole_ND - coarse_LD[(whole_ND @ coarse_LD.T).argmax(axis=1)]
    squared = np.square(residuals_ND).sum(axis=1) / np.square(whole_ND).sum(axis=1)
    return dict(zip(vectors, squared.tolist(), strict=True))


@pytest.mark.slow
def test_damaged_loose_rows_are_found(collection: Collection, tmp_path: Path) -> None:
    collection.corpus["new"] = "w1 w2"
    body = collection.night().snapshot.body
    assert body.index.loose is not None
    other = collection.copy(tmp_path / "other")
    flip_a_bit(collection.file(body.index.loose.name))
    (problem,) = verify(collection.store, [2], deep=True)[1]
    assert (problem.object, "sha256" in problem.reason) == (body.index.loose.name, True)

    # of the right digest, with the vector of something else
    store = other.store
    assert isinstance(store, LocalStore)
    loose = read_loose(store, body.index.loose, body.encoder.dim)
    wrong = LooseRows(loose.segments_N, loose.rows_N, loose.distances_N, -loose.vectors_ND).put(store, "indexes/wrong")
    assert wrong is not None
    path = other.file("snapshots/00000002.json")
    document = json.loads(path.read_text())
    document["body"]["index"]["loose"] = wrong.model_dump()
    path.write_text(json.dumps(document))
    (problem,) = verify(store, [2], deep=True)[1]
    assert "do not have the vectors of the segment" in problem.reason
