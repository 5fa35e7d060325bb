"""The whole road with the store in a bucket: the same bodies as in a folder, also after broken connections."""

import json
import sys
import uuid
from functools import partial
from pathlib import Path

import pytest
import yaml

from dpr import collect as collecting
from dpr.errors import StoreError
from dpr.operations.verify import verify
from dpr.search.retrieve import Retriever
from dpr.formats.snapshots import numbers, read_snapshot, rollback
from dpr.store import LocalStore, Store, s3
from dpr.store.lease import Lease
from dpr.store.s3_failures import Patience
from ray_jobs import cli
from tests.nights import Nights, answers
from tests.services.endpoint import S3Endpoint
from tests.services.fault_proxy import Fault, FaultProxy
from tests.tiny import make_encoder, write_jsonl


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_encoder(tmp_path_factory.mktemp("encoder"))


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DPR_CACHE", str(tmp_path / "cache"))


@pytest.fixture(params=["moto", "ceph"])
def bucket_url(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    endpoint: S3Endpoint = request.getfixturevalue(f"{request.param}_endpoint")
    bucket = f"bucket-{uuid.uuid4().hex[:8]}"
    endpoint.client().create_bucket(Bucket=bucket)
    endpoint.use(monkeypatch)
    return f"s3://{bucket}/collections/tiny"


def two_nights(nights: Nights) -> list[bytes]:
    bodies = [nights.night().snapshot.body_bytes()]
    nights.corpus |= {"p001": "w1 w2", "copy": nights.corpus["p002"]}
    del nights.corpus["p003"]
    return [*bodies, nights.night().snapshot.body_bytes()]


def names(store: Store) -> set[str]:
    return {info.name for info in store.list() if not info.name.startswith("lease/")}


def test_two_nights_in_a_bucket_and_what_comes_after(
    tmp_path: Path, encoder: Path, bucket_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    here, there = Nights(tmp_path / "here", encoder), Nights(tmp_path / "there", encoder, bucket_url)
    assert two_nights(there) == two_nights(here)
    store = there.store
    assert names(store) >= {name for name in names(here.store) if not name.startswith(("runs/", "snapshots/"))}
    for number in (1, 2):
        assert answers(store, number) == answers(here.store, number)
    assert rollback(store, 1).number == 3
    checked, problems = verify(store, [1, 2, 3], deep=True)
    assert checked >= 6
    assert problems == []

    monkeypatch.setattr(collecting, "GRACE_SECONDS", -5.0)  # nothing in the bucket is old
    with Retriever.open(store, 2) as reader:  # its question encoder, index and segments come from the bucket
        with Lease.acquire(store, "gc") as lease:
            collecting.collect(store, 1, lease)
        assert numbers(store) == [2, 3]
        assert "p003" not in {hit.id for hit in reader.search(["w1 w2"], 50).hits[0]}
    with Lease.acquire(store, "gc") as lease:
        garbage = collecting.collect(store, 1, lease)
    named = {ref.name for ref in read_snapshot(store, 3).body.objects()}
    assert numbers(store) == [3]
    assert named <= names(store)
    assert not {info.name for info in garbage.objects} & names(store)
    assert verify(store, [3], deep=True)[1] == []
    assert answers(store, 3) == answers(here.store, 1)
    # what was collected is simply made again
    assert there.night().snapshot.body_bytes() == read_snapshot(here.store, 2).body_bytes()


def test_the_commands_on_a_bucket(
    tmp_path: Path,
    encoder: Path,
    bucket_url: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    nights = Nights(tmp_path / "nights", encoder, bucket_url)
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(yaml.safe_dump(nights.recipe.model_dump(mode="json")))
    write_jsonl(nights.path, nights.corpus)

    def dpr(*arguments: object) -> str:
        monkeypatch.setattr(sys, "argv", ["dpr", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        out, err = capsys.readouterr()
        assert not ended.value.code, err
        return out

    assert json.loads(dpr("run", recipe, "--local", "--json"))["snapshot"] == 1
    text = nights.corpus["p007"]
    assert json.loads(dpr("search", bucket_url, text, "--json"))["hits"][0]["text"] == text
    assert json.loads(dpr("history", bucket_url, "--json"))[0]["passages"] == 30
    assert dpr("verify", bucket_url, "--deep").endswith("of 1 snapshots checked, 0 problems\n")
    assert json.loads(dpr("gc", bucket_url, "--json"))["objects"] == []


def test_an_endpoint_that_ignores_if_none_match_is_refused(
    tmp_path: Path,
    encoder: Path,
    nanio_endpoint: S3Endpoint,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    nanio_endpoint.client().create_bucket(Bucket="refused")
    nanio_endpoint.use(monkeypatch)
    nights = Nights(tmp_path / "nights", encoder, "s3://refused/x")
    write_jsonl(nights.path, {"a": "w1"})
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(yaml.safe_dump(nights.recipe.model_dump(mode="json")))
    monkeypatch.setattr(sys, "argv", ["dpr", "run", str(recipe), "--local"])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 5
    err = capsys.readouterr().err
    assert "error: store s3://refused/x ignores If-None-Match: * and lets a second writer replace an object" in err
    assert err.count("\n") == 1
    assert names(nights.store) == set()


class _Overwriting(LocalStore):
    """As S3 servers that ignore `If-None-Match`."""

    def put_if_absent(self, name: str, data: bytes) -> bool:
        self.put(name, data)
        return True


def test_a_rollback_is_refused_there_too(tmp_path: Path, encoder: Path) -> None:
    nights = Nights(tmp_path, encoder)
    two_nights(nights)
    with pytest.raises(StoreError, match="ignores If-None-Match"):
        rollback(_Overwriting(nights.recipe.store), 1)
    assert numbers(nights.store) == [1, 2]


@pytest.mark.parametrize(("method", "fault"), [("PUT", "refuse"), ("PUT", "lose answer"), ("GET", "cut")])
def test_a_run_that_dies_by_broken_connections_is_continued(
    tmp_path: Path,
    encoder: Path,
    moto_endpoint: S3Endpoint,
    monkeypatch: pytest.MonkeyPatch,
    method: str,
    fault: Fault,
) -> None:
    here = Nights(tmp_path / "here", encoder)
    expected = two_nights(here)
    bucket = f"bucket-{uuid.uuid4().hex[:8]}"
    moto_endpoint.client().create_bucket(Bucket=bucket)
    monkeypatch.setattr(
        s3, "Patience", partial(Patience, total_seconds=0.2, unreachable_seconds=0.2, first_delay_seconds=0.01)
    )
    with FaultProxy(moto_endpoint) as proxy:
        proxy.endpoint.use(monkeypatch)
        nights = Nights(tmp_path / "there", encoder, f"s3://{bucket}/x")
        nights.night()
        nights.corpus = dict(here.corpus)
        died = []
        for passing in (2, 5, 8, 12):
            proxy.fail(method, "pass", passing)
            proxy.fail(method, fault, 1000)
            try:
                nights.night()
            except StoreError as error:
                died.append(str(error))
            proxy.mend()
        assert len(died) >= 3
        assert all(f"store s3://{bucket}/x" in said and "\n" not in said for said in died)
        nights.night()
        assert [read_snapshot(nights.store, number).body_bytes() for number in (1, 2)] == expected
        assert numbers(nights.store) == [1, 2]
        assert verify(nights.store, [2], deep=True)[1] == []
