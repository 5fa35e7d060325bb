"""The merge stage: how segments are cut into shards, where parts are read from, what the report says."""

from pathlib import Path

import faiss
import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dpr.errors import IntegrityError
from dpr.formats import layout
from dpr.formats.manifest import SegmentEntry
from dpr.formats.objects import fetch_into, put_object
from dpr.formats.records import ObjectRef, read_record
from dpr.index.contents import stored_ids
from dpr.index.faiss_file import read_faiss
from dpr.operations.gc import find_garbage
from dpr.operations.verify import verify
from dpr.stages.merge import ShardResult
from dpr.stages.shard_rows import split_evenly
from dpr.store import LocalStore, open_store
from tests.collection import Collection, FirstNights
from tests.services.endpoint import S3Endpoint
from tests.tiny import random_texts

pytestmark = pytest.mark.usefixtures("no_loose_rows")

NOTHING = ObjectRef(name="none", size_bytes=0, sha256="0" * 64)
ROWS = 240
FIXED = {"factory": "IVF8,SQ8", "nprobe": 3, "rescore": 50}


@given(live=st.lists(st.integers(0, 1000), max_size=30), wanted=st.integers(1, 12))
def test_shards_are_even_runs_of_the_living_segments(live: list[int], wanted: int) -> None:
    entries = [
        SegmentEntry(number=number, segment_id=str(number), rows=rows + 5, object=NOTHING, dead_rows=5, dead_digest="d")
        for number, rows in enumerate(live)
    ]
    shards = split_evenly(entries, wanted)
    assert [entry for shard in shards for entry in shard] == [entry for entry in entries if entry.live_rows]
    assert len(shards) <= wanted
    assert all(shards)
    for shard in shards:
        assert sum(entry.live_rows for entry in shard) <= sum(live) / wanted + max(live)


@pytest.fixture
def collection(tmp_path: Path, first_nights: FirstNights) -> Collection:
    """A first night with one shard."""
    gate, resources = {"min_recall": 0}, {"segment_rows": 40}
    return first_nights.copy(tmp_path, random_texts(ROWS), index=FIXED, gate=gate, resources=resources)


@pytest.mark.slow
def test_a_sharded_store_answers_as_one_with_a_single_index(collection: Collection) -> None:
    collection.change(index={"shards": 4})
    body, store = collection.night().snapshot.body, collection.store
    assert body.codebook == collection.body(1).codebook
    assert len(body.index.shards) == 4
    assert sum(shard.rows for shard in body.index.shards) == body.index.rows == ROWS
    for shard in body.index.shards:
        numbers = stored_ids(read_faiss(collection.file(shard.object.name))) >> 32
        assert sorted(set(numbers.tolist())) == shard.segments
    assert verify(store, [1, 2], deep=True)[1] == []
    assert not {ref.name for ref in body.objects()} & {info.name for info in find_garbage(store, 1).objects}
    assert collection.answers(2) == collection.answers(1)

    store.delete(body.index.shards[1].object.name)
    assert [problem.object for problem in verify(store, [2])[1]] == [body.index.shards[1].object.name]


@pytest.mark.slow
def test_the_record_holds_the_verification_of_the_index(collection: Collection) -> None:
    body = collection.body(1)
    (shard,) = body.index.shards
    result = read_record(collection.store, f"{shard.object.name.rpartition('-')[0]}.json", ShardResult)
    assert result is not None
    assert (result.rows, result.shard) == (ROWS, shard.object)
    index = read_faiss(collection.file(shard.object.name))
    sizes = [index.invlists.list_size(number) for number in range(8)]
    found = result.verification
    assert (found.ntotal, found.lists, found.largest_list) == (ROWS, 8, max(sizes))
    # by hand: every vector decoded from where it lies, against the one in the segment its id names
    stored = {e.number: pq.read_table(collection.file(e.object.name))["embedding"] for e in body.segments}
    index.set_direct_map_type(faiss.DirectMap.Hashtable)
    squared_error = squared_norm = 0.0
    for id_ in stored_ids(index).tolist():
        vector = np.array(stored[id_ >> 32][id_ & 0xFFFFFFFF].as_py(), np.float64)
        squared_error += np.square(index.reconstruct(id_) - vector).sum()
        squared_norm += np.square(vector).sum()
    assert found.error_rows == ROWS
    assert found.quantisation_error == pytest.approx(squared_error / squared_norm, rel=1e-4)


@pytest.mark.slow
def test_the_report_of_a_night_shows_each_shard(collection: Collection) -> None:
    collection.change(index={"shards": 2})
    outcome = collection.night()
    assert outcome.report is not None
    shown = outcome.report.index.shards
    for shard, report in zip(outcome.snapshot.body.index.shards, shown, strict=True):
        result = read_record(collection.store, f"{shard.object.name.rpartition('-')[0]}.json", ShardResult)
        assert result is not None
        assert report.verification == result.verification
        assert (report.rows, report.size_bytes) == (shard.rows, shard.object.size_bytes)
    assert [report.segments for report in shown] == [[0, 1, 2], [3, 4, 5]]


@pytest.mark.slow
def test_shards_stay_while_few_of_their_rows_are_dead(collection: Collection) -> None:
    collection.change(index={"shards": 2}, resources={"compact_below": 0.0})
    first = collection.night().snapshot.body.index.shards
    del collection.corpus["p000"]  # in the first segment
    second = collection.night().snapshot.body.index.shards
    assert [shard.object for shard in second] == [shard.object for shard in first]
    assert [shard.rows - shard.live_rows for shard in second] == [1, 0]
    collection.corpus["new"] = "w1 w2 w3"
    third = collection.night().snapshot.body.index.shards
    assert [shard.object for shard in third[:2]] == [shard.object for shard in first]
    assert [(shard.rows, shard.live_rows) for shard in third[2:]] == [(1, 1)]
    assert len([info for info in collection.store.list(layout.INDEXES) if info.name.endswith(".faiss")]) == 1 + 2 + 1
    assert verify(collection.store, [2, 3, 4], deep=True)[1] == []


@pytest.mark.slow
def test_a_row_that_comes_back_is_found_again(collection: Collection) -> None:
    text = collection.corpus.pop("p000")
    collection.night()
    collection.corpus |= {"p000": text, "new": "w1 w1"}
    snapshot = collection.night().snapshot
    assert snapshot.body.index.rows == ROWS + 1
    assert verify(collection.store, [snapshot.number], deep=True)[1] == []


def test_a_shard_of_many_dead_rows_is_written_again(collection: Collection) -> None:
    collection.change(resources={"compact_below": 0.0}, limits={"max_shrink": 1.0})
    for number in range(ROWS // 3):
        del collection.corpus[f"p{number:03d}"]
    (shard,) = collection.night().snapshot.body.index.shards
    assert shard.rows == shard.live_rows == ROWS - ROWS // 3


@pytest.mark.s3
def test_a_remote_part_is_fetched_once_and_verified(
    moto_endpoint: S3Endpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    moto_endpoint.use(monkeypatch)
    moto_endpoint.client().create_bucket(Bucket="parts")
    store = open_store("s3://parts/store")
    assert not isinstance(store, LocalStore)
    path, folder = tmp_path / "part.bin", tmp_path / "folder"
    folder.mkdir()
    content = np.random.default_rng(0).bytes(20 * 2**20)
    path.write_bytes(content)
    ref = put_object(store, "parts/a", path)
    file = fetch_into(store, ref, folder)
    assert (file.parent, file.read_bytes()) == (folder, content)
    with pytest.raises(IntegrityError, match=rf"{ref.name} in .* has sha256 [0-9a-f]{{64}}, its record says 0000"):
        fetch_into(store, ref.model_copy(update={"sha256": "0" * 64}), folder)
    with pytest.raises(IntegrityError, match="its record says 7"):
        fetch_into(store, ref.model_copy(update={"size_bytes": 7}), folder)
