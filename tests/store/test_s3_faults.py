"""What S3Store makes of busy servers and bad networks: a proxy in front of a real server makes them happen."""

import contextlib
import re
import uuid
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from dpr.errors import StoreError
from dpr.store.s3 import CHUNK_BYTES, S3Store
from dpr.store.s3_failures import Patience
from tests.services.endpoint import S3Endpoint
from tests.services.fault_proxy import Fault, FaultProxy

PATIENCE = Patience(total_seconds=60.0, unreachable_seconds=60.0, first_delay_seconds=0.01, longest_delay_seconds=0.05)
HASTE = replace(PATIENCE, read_seconds=0.3)
IMPATIENCE = replace(PATIENCE, total_seconds=1.5, unreachable_seconds=1.5, read_seconds=0.5, attempt_seconds=0.7)
PASSING: list[Fault] = ["slow down", "internal error", "refuse", "cut", "lose answer", "stall"]
LARGE = bytes(range(256)) * (10 * CHUNK_BYTES // 256 // 4)


class Rig:
    """A bucket of the server behind the proxy, and a store that reaches it through the proxy."""

    def __init__(self, proxy: FaultProxy, client: Any) -> None:
        self.proxy = proxy
        self.client = client
        self.bucket = f"bucket-{uuid.uuid4().hex[:8]}"
        client.create_bucket(Bucket=self.bucket)
        self.store = S3Store(f"s3://{self.bucket}", PATIENCE)
        self.hasty_store = S3Store(f"s3://{self.bucket}", HASTE)
        self.impatient_store = S3Store(f"s3://{self.bucket}", IMPATIENCE)
        for store in (self.store, self.hasty_store, self.impatient_store):
            with contextlib.suppress(StoreError):  # a busy machine may not make it in time
                store.exists("x")  # reads the settings of now

    def store_for(self, fault: Fault) -> S3Store:
        return self.hasty_store if fault == "stall" else self.store

    def reset(self) -> None:
        self.proxy.mend()
        self.proxy.requests.clear()
        for name in self.names():
            self.client.delete_object(Bucket=self.bucket, Key=name)
        for upload in self.unfinished_uploads():  # begun by requests whose answer got lost: nobody knows their ids
            self.client.abort_multipart_upload(Bucket=self.bucket, Key=upload["Key"], UploadId=upload["UploadId"])

    def write(self, name: str, data: bytes) -> None:
        self.client.put_object(Bucket=self.bucket, Key=name, Body=data)

    def names(self) -> list[str]:
        return [found["Key"] for found in self.client.list_objects_v2(Bucket=self.bucket).get("Contents", ())]

    def objects(self) -> dict[str, bytes]:
        objects = {}
        for name in self.names():
            with self.client.get_object(Bucket=self.bucket, Key=name)["Body"] as body:
                objects[name] = body.read()
        return objects

    def unfinished_uploads(self) -> list[dict[str, str]]:
        found: list[dict[str, str]] = self.client.list_multipart_uploads(Bucket=self.bucket).get("Uploads", [])
        return found

    def methods(self) -> list[str]:
        return [method for method, _ in self.proxy.requests]


@contextlib.contextmanager
def rig_before(endpoint: S3Endpoint) -> Iterator[Rig]:
    with FaultProxy(endpoint) as proxy:
        with pytest.MonkeyPatch.context() as monkeypatch:
            proxy.endpoint.use(monkeypatch)
            rig = Rig(proxy, endpoint.client())
        yield rig


@pytest.fixture(scope="module")
def moto_rig(moto_endpoint: S3Endpoint) -> Iterator[Rig]:
    with rig_before(moto_endpoint) as rig:
        yield rig


@pytest.fixture(scope="module")
def ceph_rig(ceph_endpoint: S3Endpoint) -> Iterator[Rig]:
    with rig_before(ceph_endpoint) as rig:
        yield rig


@pytest.fixture
def rig(moto_rig: Rig) -> Rig:
    """The quick server, which shows what the store does."""
    moto_rig.reset()
    return moto_rig


@pytest.fixture(params=["moto", "ceph"])
def either_rig(request: pytest.FixtureRequest) -> Rig:
    """Also the real one, where it matters what the server does."""
    rig: Rig = request.getfixturevalue(f"{request.param}_rig")
    rig.reset()
    return rig


def fetched(store: S3Store, path: Path) -> bytes:
    store.fetch("there", path)
    return path.read_bytes()


READS: dict[str, Callable[[S3Store, Path], object]] = {
    "get": lambda store, _: store.get("there"),
    "range": lambda store, _: store.get_range("there", 0, 5),
    "size": lambda store, _: (b"01234", store.size("there"))[0],
    "exists": lambda store, _: b"01234" if store.exists("there") else b"",
    "fetch": fetched,
    "list": lambda store, _: b"01234" if [info.name for info in store.list()] == ["there"] else b"",
}
WRITES: dict[str, tuple[str, Callable[[S3Store], object], dict[str, bytes]]] = {
    "put": ("PUT", lambda store: store.put("new", b"1"), {"there": b"01234", "new": b"1"}),
    "put_if_absent": ("PUT", lambda store: store.put_if_absent("new", b"1"), {"there": b"01234", "new": b"1"}),
    "delete": ("DELETE", lambda store: store.delete("there"), {}),
}


@pytest.mark.parametrize("fault", PASSING)
@pytest.mark.parametrize("read", READS)
def test_reads_are_repeated(rig: Rig, tmp_path: Path, read: str, fault: Fault) -> None:
    rig.write("there", b"01234")
    rig.proxy.fail("GET", fault, times=2)
    assert READS[read](rig.store_for(fault), tmp_path / "copy") == b"01234"
    assert rig.methods().count("GET") >= 3


@pytest.mark.parametrize("fault", [fault for fault in PASSING if fault != "cut"])  # their answers have no bodies
@pytest.mark.parametrize("write", WRITES)
def test_writes_are_repeated(rig: Rig, write: str, fault: Fault) -> None:
    method, call, objects = WRITES[write]
    rig.write("there", b"01234")
    rig.proxy.fail(method, fault, times=2)
    assert call(rig.store_for(fault)) in (None, True)
    assert rig.methods().count(method) >= 3
    assert rig.objects() == objects


def test_large_objects_pass_through_faults(rig: Rig, tmp_path: Path) -> None:
    (tmp_path / "large").write_bytes(LARGE)
    faults: dict[str, list[Fault]] = {
        "POST": ["slow down", "lose answer", "pass", "lose answer"],
        "PUT": ["slow down", "pass", "lose answer", "refuse", "internal error"],
        "GET": ["refuse", "pass", "cut", "cut", "slow down"],
    }
    for method, planned in faults.items():
        for fault in planned:
            rig.proxy.fail(method, fault)
    rig.store.put_file("large", tmp_path / "large")
    rig.store.fetch("large", tmp_path / "copy")
    assert rig.objects() == {"large": LARGE}
    assert (tmp_path / "copy").read_bytes() == LARGE


def test_a_completed_upload_whose_answer_got_lost_is_not_a_failure(either_rig: Rig, tmp_path: Path) -> None:
    (tmp_path / "large").write_bytes(LARGE)
    either_rig.proxy.fail("POST", "pass")
    either_rig.proxy.fail("POST", "lose answer")
    either_rig.store.put_file("large", tmp_path / "large")
    assert either_rig.methods().count("POST") == 3
    assert either_rig.objects() == {"large": LARGE}
    assert either_rig.unfinished_uploads() == []


class TestUnknownOutcome:
    """put_if_absent may not say False to the writer who created the object, nor True to another."""

    def test_lost_answer_of_the_creator(self, either_rig: Rig) -> None:
        either_rig.proxy.fail("PUT", "lose answer")
        assert either_rig.store.put_if_absent("once", b"mine") is True
        assert either_rig.methods() == ["PUT", "PUT", "HEAD"]
        assert either_rig.objects() == {"once": b"mine"}

    def test_lost_answer_of_another_with_equal_bytes(self, either_rig: Rig) -> None:
        assert either_rig.store.put_if_absent("once", b"the same") is True
        either_rig.proxy.fail("PUT", "lose answer")
        assert either_rig.store.put_if_absent("once", b"the same") is False

    def test_all_answers_lost_but_the_last(self, either_rig: Rig) -> None:
        either_rig.proxy.fail("PUT", "lose answer", times=4)
        either_rig.proxy.fail("HEAD", "refuse", times=2)
        assert either_rig.store.put_if_absent("once", b"") is True
        assert either_rig.objects() == {"once": b""}

    def test_unknown_to_the_end(self, rig: Rig) -> None:
        rig.proxy.fail("PUT", "lose answer", times=100_000)
        with pytest.raises(StoreError, match=r"object once: the connection to \S+ broke after"):
            rig.impatient_store.put_if_absent("once", b"mine")
        assert rig.objects() == {"once": b"mine"}


LASTING: list[tuple[Fault, str, Callable[[S3Store], object]]] = [
    ("slow down", "SlowDown (HTTP status 503): it is overloaded", lambda store: store.put("new", b"1")),
    ("internal error", "InternalError (HTTP status 500)", lambda store: list(store.list())),
    ("refuse", "broke", lambda store: store.get("there")),
    ("cut", "broke", lambda store: store.get("there")),
    ("lose answer", "broke", lambda store: store.delete("there")),
    ("stall", "did not answer in time", lambda store: store.size("there")),
    ("trickle", "did not answer in time", lambda store: store.get("there")),
    ("web page", "no S3 error code", lambda store: list(store.list())),
    ("web page", "does not answer as S3 does", lambda store: store.get("there")),
]


@pytest.mark.parametrize(("fault", "cause", "call"), LASTING)
def test_lasting_faults_end_in_one_sentence(
    rig: Rig, fault: Fault, cause: str, call: Callable[[S3Store], object]
) -> None:
    rig.write("there", b"0" * 1000)
    for method in ("GET", "PUT", "DELETE"):
        rig.proxy.fail(method, fault, times=100_000)
    with pytest.raises(StoreError) as caught:
        call(rig.impatient_store)
    said = str(caught.value)
    assert said.startswith(f"store s3://{rig.bucket}, object ")
    assert f"{rig.proxy.endpoint.url} " in said
    assert cause in said
    assert re.search(r" after \d+ attempts in \d+ s; ", said)
    assert "\n" not in said
    assert ". " not in said
    assert len(rig.proxy.requests) > 1


def test_an_upload_that_fails_leaves_nothing(rig: Rig, tmp_path: Path) -> None:
    (tmp_path / "large").write_bytes(LARGE)
    rig.proxy.fail("PUT", "slow down", times=100_000)
    with pytest.raises(StoreError, match="overloaded"):
        rig.impatient_store.put_file("large", tmp_path / "large")
    assert rig.objects() == {}
    assert rig.unfinished_uploads() == []


def test_a_fetch_that_fails_leaves_no_file(rig: Rig, tmp_path: Path) -> None:
    rig.write("large", LARGE)
    (tmp_path / "copy").write_bytes(b"as it was")
    rig.proxy.fail("GET", "pass")
    rig.proxy.fail("GET", "cut", times=100_000)
    with pytest.raises(StoreError, match="broke"):
        rig.impatient_store.fetch("large", tmp_path / "copy")
    assert [path.name for path in tmp_path.iterdir()] == ["copy"]
    assert (tmp_path / "copy").read_bytes() == b"as it was"
