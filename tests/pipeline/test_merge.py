"""The merge stage: how segments are cut into shards, where parts are read from, what the report says."""

from pathlib import Path

import faiss
import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dpr.operations.gc import find_garbage
from dpr.errors import IntegrityError
from dpr.index.training import read_index
from dpr.index.contents import stored_ids
from dpr.operations.verify import verify
from dpr.formats.manifest import Deletions, SegmentEntry
from dpr.stages.merge import plan_shards, shard_reports
from dpr.formats.records import ObjectRef, open_verified, put_object, read_record
from dpr.search.retrieve import Retriever
from dpr.store import LocalStore, Store, open_store
from tests.pipeline.stores import run, tiny_recipe
from tests.services.endpoint import S3Endpoint

NOTHING = ObjectRef(name="none", size_bytes=0, sha256="")


@given(live=st.lists(st.integers(0, 1000), max_size=30), wanted=st.integers(1, 12))
def test_shards_are_even_runs_of_the_living_segments(live: list[int], wanted: int) -> None:
    entries = [
        SegmentEntry(
            number=number,
            segment_id=str(number),
            rows=rows + 5,
            object=NOTHING,
            deletions=Deletions(rows=5, object=NOTHING),
        )
        for number, rows in enumerate(live)
    ]
    shards = plan_shards(entries, wanted)
    assert [entry for shard in shards for entry in shard] == [entry for entry in entries if entry.live_rows]
    assert len(shards) <= wanted
    assert all(shards)
    for shard in shards:
        assert sum(entry.live_rows for entry in shard) <= sum(live) / wanted + max(live)


FIXED = {"factory": "IVF8,SQ8", "nprobe": 3, "rescore": 50}


def test_a_sharded_store_answers_as_one_with_a_single_index(tmp_path: Path, encoder: Path) -> None:
    answers = []
    for shards in (1, 4):
        made = tiny_recipe(tmp_path / str(shards), encoder, shards=shards, **FIXED)
        body = run(made).snapshot.body
        store = LocalStore(made.store)
        assert len(body.index.shards) == shards
        assert sum(shard.rows for shard in body.index.shards) == body.index.rows == 600
        for shard in body.index.shards:
            numbers = stored_ids(read_index(store.local_path(shard.object.name))) >> 32
            assert (numbers.min(), numbers.max()) == (shard.first_segment, shard.last_segment)
        assert verify(store, [1], deep=True)[1] == []
        assert not {ref.name for ref in body.objects()} & {info.name for info in find_garbage(store, 1).objects}
        answers.append(Retriever.open(store).search(["w1 w2 w3", "w9", "w50 w51"], 30).hits)
    assert answers[0] == answers[1]


def test_a_lost_shard_is_a_problem(tmp_path: Path, encoder: Path) -> None:
    made = tiny_recipe(tmp_path, encoder, shards=3, **FIXED)
    body = run(made).snapshot.body
    store = LocalStore(made.store)
    store.delete(body.index.shards[1].object.name)
    assert [problem.object for problem in verify(store, [1])[1]] == [body.index.shards[1].object.name]


def test_the_record_holds_the_verification_report(tmp_path: Path, encoder: Path) -> None:
    made = tiny_recipe(tmp_path, encoder, **FIXED)
    body = run(made).snapshot.body
    store = LocalStore(made.store)
    (shard,) = body.index.shards
    facts = read_record(store, shard.object.name.replace(".faiss", ".json")).facts
    (report,) = shard_reports(store, body.index)
    assert report == {"segments": "0 to 5", "rows": 600, "bytes": shard.object.size_bytes, **facts}
    index = read_index(store.local_path(shard.object.name))
    sizes = [index.invlists.list_size(number) for number in range(8)]
    assert (facts["ntotal"], facts["lists"], facts["largest_list"]) == (600, 8, max(sizes))
    # by hand: every vector decoded from where it lies, against the one in the segment its id names
    stored = {e.number: pq.read_table(store.local_path(e.object.name))["embedding"] for e in body.segments}
    index.set_direct_map_type(faiss.DirectMap.Hashtable)
    squared_error = squared_norm = 0.0
    for id_ in stored_ids(index).tolist():
        vector = np.array(stored[id_ >> 32][id_ & 0xFFFFFFFF].as_py(), np.float64)
        squared_error += np.square(index.reconstruct(id_) - vector).sum()
        squared_norm += np.square(vector).sum()
    assert facts["error_rows"] == 600
    assert facts["quantisation_error"] == pytest.approx(squared_error / squared_norm, rel=1e-4)


def test_a_remote_part_is_verified_and_then_read_by_range(
    moto_endpoint: S3Endpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    moto_endpoint.use(monkeypatch)
    moto_endpoint.client().create_bucket(Bucket="parts")
    store: Store = open_store("s3://parts/store")
    path = tmp_path / "part"
    content = np.random.default_rng(0).bytes(20 * 2**20)
    path.write_bytes(content)
    ref = put_object(store, "parts/a", path)
    file = open_verified(store, ref)
    assert not isinstance(file, Path)
    file.seek(9_000_000)
    assert file.read(1000) == content[9_000_000:9_001_000]
    with pytest.raises(IntegrityError, match=r"parts/a in .* has sha256 [0-9a-f]{64}, its record says 0000"):
        open_verified(store, ref.model_copy(update={"sha256": "0000"}))
    with pytest.raises(IntegrityError, match="its record says 7"):
        open_verified(store, ref.model_copy(update={"size_bytes": 7}))
