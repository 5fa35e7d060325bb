"""What S3Store makes of busy servers and bad networks: a proxy in front of a real server makes them happen."""

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from dpr.errors import StoreError
from dpr.store.s3 import S3Store
from dpr.store.s3_upload import CHUNK_BYTES
from tests.services.fault_proxy import Fault
from tests.store.s3_rig import Rig

PASSING: list[Fault] = ["slow down", "internal error", "refuse", "cut", "lose answer", "stall"]
LARGE = bytes(range(256)) * (10 * CHUNK_BYTES // 256 // 4)


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
BOTH = {"there": b"01234", "new": b"1"}
WRITES: dict[str, tuple[str, Callable[[S3Store, Path], object], dict[str, bytes]]] = {
    "put": ("PUT", lambda store, _: store.put("new", b"1"), BOTH),
    "put_if_absent": ("PUT", lambda store, _: store.put_if_absent("new", b"1"), BOTH),
    "put_file_if_absent": ("PUT", lambda store, file: store.put_file_if_absent("new", file), BOTH),
    "delete": ("DELETE", lambda store, _: store.delete("there"), {}),
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
def test_writes_are_repeated(rig: Rig, tmp_path: Path, write: str, fault: Fault) -> None:
    method, call, objects = WRITES[write]
    (tmp_path / "file").write_bytes(b"1")
    rig.write("there", b"01234")
    rig.proxy.fail(method, fault, times=2)
    assert call(rig.store_for(fault), tmp_path / "file") in (None, True)
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
    assert rig.store.put_file_if_absent("large", tmp_path / "large") is True
    rig.store.fetch("large", tmp_path / "copy")
    assert rig.objects() == {"large": LARGE}
    assert (tmp_path / "copy").read_bytes() == LARGE


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
    message = str(caught.value)
    assert message.startswith(f"store s3://{rig.bucket}, object ")
    assert f"{rig.proxy.endpoint.url} " in message
    assert cause in message
    assert re.search(r" after \d+ attempts in \d+ s; ", message)
    assert "\n" not in message
    assert ". " not in message
    assert len(rig.proxy.requests) > 1


def test_a_fetch_that_fails_leaves_no_file(rig: Rig, tmp_path: Path) -> None:
    rig.write("large", LARGE)
    (tmp_path / "copy").write_bytes(b"as it was")
    rig.proxy.fail("GET", "pass")
    rig.proxy.fail("GET", "cut", times=100_000)
    with pytest.raises(StoreError, match="broke"):
        rig.impatient_store.fetch("large", tmp_path / "copy")
    assert [path.name for path in tmp_path.iterdir()] == ["copy"]
    assert (tmp_path / "copy").read_bytes() == b"as it was"
