"""Markers of readers: there while a snapshot is read, renewed, gone afterwards."""

import gc
import logging
import threading
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from dpr import readers
from dpr.errors import EncoderError, MissingObjectError
from dpr.formats.markers import Marker, find_readers
from dpr.search.retrieve import Retriever
from dpr.store import LocalStore, Store, open_store
from dpr.store.lease import store_time
from tests.nights import Nights
from tests.services.endpoint import S3Endpoint
from tests.tiny import make_encoder


@pytest.fixture(params=["local", "moto", "ceph"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Store]:
    if request.param == "local":
        yield LocalStore(tmp_path / "store")
        return
    endpoint: S3Endpoint = request.getfixturevalue(f"{request.param}_endpoint")
    bucket = f"bucket-{uuid.uuid4().hex[:8]}"
    endpoint.client().create_bucket(Bucket=bucket)
    with pytest.MonkeyPatch.context() as monkeypatch:
        endpoint.use(monkeypatch)
        yield open_store(f"s3://{bucket}/x")


@pytest.fixture(scope="module")
def nights(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nights]:
    folder = tmp_path_factory.mktemp("readers")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DPR_CACHE", str(folder / "cache"))
        made = Nights(folder / "nights", make_encoder(folder / "encoder"))
        made.night()
        yield made


def found(store: Store) -> list[int]:
    return [reader.snapshot for reader in find_readers(store, store_time(store)) if reader.lives]


def test_a_marker_is_there_until_it_is_closed_and_is_renewed(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(readers, "BEAT_SECONDS", 0.05)
    with Marker(store, 7) as marker:
        assert found(store) == [7]
        (first,) = store.list("readers/")
        assert first.name == marker.name
        until = time.monotonic() + 60
        while (now := next(store.list("readers/"))).modified == first.modified:  # S3 counts whole seconds
            assert time.monotonic() < until
            time.sleep(0.05)
        assert now.name == first.name
        with Marker(store, 12):
            assert found(store) == [7, 12]
    assert list(store.list("readers/")) == []


def test_hearts_end_with_their_markers(tmp_path: Path) -> None:
    before = threading.enumerate()
    for _ in range(3):
        Marker(LocalStore(tmp_path), 1).close()
    assert [thread for thread in threading.enumerate() if thread not in before] == []


def test_a_retriever_is_a_reader_until_it_is_closed_or_dropped(nights: Nights) -> None:
    with Retriever.open(nights.store) as retriever:
        assert found(nights.store) == [1]
        assert retriever.search(["w1"], 1).hits[0]
    assert found(nights.store) == []
    retriever = Retriever.open(nights.store)
    assert found(nights.store) == [1]
    del retriever
    gc.collect()
    until = time.monotonic() + 60
    while found(nights.store):
        assert time.monotonic() < until
        time.sleep(0.01)


def test_opening_that_fails_leaves_no_marker(nights: Nights, tmp_path: Path) -> None:
    other = make_encoder(tmp_path / "other", seed=1)
    with pytest.raises(EncoderError):
        Retriever.open(nights.store, model=str(other))
    with pytest.raises(MissingObjectError):
        Retriever.open(nights.store, 9)
    assert list(nights.store.list("readers/")) == []


def test_a_store_that_cannot_be_written_is_read_and_one_warning_says_so(
    nights: Nights, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(readers, "BEAT_SECONDS", 0.01)
    in_the_way = Path(nights.store.url) / "readers"
    if in_the_way.exists():
        in_the_way.rmdir()
    in_the_way.write_bytes(b"")  # a file where the folder would be: every write of a marker fails
    try:
        with caplog.at_level(logging.WARNING), Retriever.open(nights.store) as retriever:
            assert retriever.search(["w1"], 1).hits[0]
            time.sleep(0.05)
    finally:
        in_the_way.unlink()
    (record,) = [record for record in caplog.records if record.name == "dpr.formats.markers"]
    assert "snapshot 1 is read without a marker" in record.getMessage()
    assert nights.store.url in record.getMessage()
