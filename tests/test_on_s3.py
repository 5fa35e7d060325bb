"""Whole runs with the store in a bucket: the same bodies as in a folder, also after broken connections."""

import json
import sys
import uuid
from functools import partial
from pathlib import Path

import pytest

import dpr.store.s3
from dpr.errors import StoreError
from dpr.formats.snapshots import numbers, read_snapshot
from dpr.operations import gc
from dpr.operations.rollback import rollback
from dpr.operations.verify import verify
from dpr.search.retrieve import Retriever
from dpr.store import Store
from dpr.store.lease import Lease
from dpr.store.s3_failures import Patience
from ray_jobs import cli
from ray_jobs.guard import guarded
from tests.collection import Collection, FirstNights
from tests.faulty_store import FaultyStore
from tests.services.endpoint import S3Endpoint
from tests.services.fault_proxy import Fault, FaultProxy

pytestmark = [pytest.mark.s3]


@pytest.fixture(params=["moto", "ceph"])
def bucket_url(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    endpoint: S3Endpoint = request.getfixturevalue(f"{request.param}_endpoint")
    bucket = f"bucket-{uuid.uuid4().hex[:8]}"
    endpoint.client().create_bucket(Bucket=bucket)
    endpoint.use(monkeypatch)
    return f"s3://{bucket}/collections/tiny"


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory, encoder: Path) -> Collection:
    """Two nights in a folder, to compare with."""
    collection = Collection(tmp_path_factory.mktemp("here"), encoder)
    collection.night()
    change(collection)
    collection.night()
    return collection


def change(collection: Collection) -> None:
    """What happens to the corpus between the two nights."""
    collection.corpus |= {"p001": "w1 w2", "copy": collection.corpus["p002"]}
    del collection.corpus["p003"]


def bodies(collection: Collection) -> list[bytes]:
    return [collection.body(number).to_bytes() for number in numbers(collection.store)]


def upload(collection: Collection, store: Store) -> None:
    """Put all objects of a collection into another store."""
    for name in sorted(collection.files()):
        if not name.startswith("lease/"):
            store.put_file_if_absent(name, collection.file(name))


def names(store: Store) -> set[str]:
    return {info.name for info in store.list() if not info.name.startswith("lease/")}


def test_two_nights_in_a_bucket_and_what_comes_after(
    tmp_path: Path, encoder: Path, here: Collection, bucket_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    there = Collection(tmp_path, encoder, store=bucket_url)
    store = there.store
    there.night()
    change(there)
    with monkeypatch.context() as patch:  # the second night first breaks off
        patch.setattr(dpr.store, "_shared_s3_store", lambda *_: FaultyStore(store, fail_at=9, mode="after"))
        with pytest.raises(StoreError, match="on purpose"):
            there.night()
    there.night()
    assert bodies(there) == bodies(here)
    kept = {name for name in names(here.store) if not name.startswith(("runs/", "scans/", "snapshots/"))}
    assert names(store) >= kept
    for number in (1, 2):
        assert there.answers(number) == here.answers(number)
    assert rollback(store, 1).number == 3
    checked, problems = verify(store, [1, 2, 3], deep=True)
    assert checked >= 6
    assert problems == []

    monkeypatch.setattr(gc, "GRACE_SECONDS", -5.0)  # all objects in the bucket are new
    with Retriever.open(store, 2) as reader:  # its index and segments come from the bucket
        with Lease.acquire(store, "gc") as lease:
            gc.collect(store, 1, lease)
        assert numbers(store) == [2, 3]
        assert "p003" not in {hit.id for hit in reader.search(["w1 w2"], 50).hits[0]}
    with Lease.acquire(store, "gc") as lease:
        garbage = gc.collect(store, 1, lease)
    named = {ref.name for ref in read_snapshot(store, 3).body.objects()}
    assert numbers(store) == [3]
    assert named <= names(store)
    assert not {info.name for info in garbage.objects} & names(store)
    assert verify(store, [3], deep=True)[1] == []
    assert there.answers(3) == here.answers(1)
    # deleted objects are simply made again
    assert there.night().snapshot.body.to_bytes() == bodies(here)[1]


def test_the_commands_on_a_bucket(
    tmp_path: Path,
    encoder: Path,
    bucket_url: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    collection = Collection(tmp_path, encoder, store=bucket_url)
    recipe = collection.write_recipe()

    def dpr_(*arguments: object) -> str:
        monkeypatch.setattr(sys, "argv", ["dpr", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            sys.exit(guarded(cli.run))
        out, err = capsys.readouterr()
        assert not ended.value.code, err
        return out

    assert json.loads(dpr_("run", recipe, "--local", "--json"))["snapshot"] == 1
    text = collection.corpus["p007"]
    assert json.loads(dpr_("search", bucket_url, text, "--json"))["hits"][0]["text"] == text
    assert json.loads(dpr_("history", bucket_url, "--json"))[0]["passages"] == 30
    assert dpr_("verify", bucket_url, "--deep").endswith("of 1 snapshot checked, 0 problems\n")
    assert json.loads(dpr_("gc", bucket_url, "--json"))["objects"] == []


def test_an_endpoint_that_ignores_if_none_match_is_refused(
    tmp_path: Path,
    encoder: Path,
    nanio_endpoint: S3Endpoint,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    nanio_endpoint.client().create_bucket(Bucket="refused")
    nanio_endpoint.use(monkeypatch)
    collection = Collection(tmp_path, encoder, {"a": "w1"}, store="s3://refused/x")
    monkeypatch.setattr(sys, "argv", ["dpr", "run", str(collection.write_recipe()), "--local"])
    with pytest.raises(SystemExit) as ended:
        sys.exit(guarded(cli.run))
    assert ended.value.code == 5
    err = capsys.readouterr().err
    assert "error: store s3://refused/x ignores If-None-Match: * and lets a second writer replace an object" in err
    assert err.count("\n") == 1
    assert names(collection.store) == set()


@pytest.mark.parametrize(("method", "fault"), [("PUT", "refuse"), ("PUT", "lose answer"), ("GET", "cut")])
def test_a_run_that_dies_by_broken_connections_is_continued(
    tmp_path: Path,
    encoder: Path,
    first_nights: FirstNights,
    here: Collection,
    moto_endpoint: S3Endpoint,
    monkeypatch: pytest.MonkeyPatch,
    method: str,
    fault: Fault,
) -> None:
    bucket = f"bucket-{uuid.uuid4().hex[:8]}"
    moto_endpoint.client().create_bucket(Bucket=bucket)
    impatient = partial(Patience, total_seconds=0.2, unreachable_seconds=0.2, first_delay_seconds=0.01)
    monkeypatch.setattr(dpr.store.s3, "Patience", impatient)
    with FaultProxy(moto_endpoint) as proxy:
        proxy.endpoint.use(monkeypatch)
        there = Collection(tmp_path / "there", encoder, store=f"s3://{bucket}/x")
        upload(first_nights.copy(tmp_path / "first"), there.store)
        change(there)
        died = []
        for passing in (2, 5, 8, 12):
            proxy.fail(method, "pass", passing)
            proxy.fail(method, fault, 1000)
            try:
                there.night()
            except StoreError as error:
                died.append(str(error))
            proxy.mend()
        assert len(died) >= 3
        assert all(f"store s3://{bucket}/x" in message and "\n" not in message for message in died)
        there.night()
        assert bodies(there) == bodies(here)
        assert numbers(there.store) == [1, 2]
        assert verify(there.store, [2], deep=True)[1] == []
