"""A store that would let two publishers overwrite each other is refused before anything is published."""

import subprocess
import sys
from pathlib import Path

import pytest

from dpr.errors import StoreError
from dpr.store import open_store
from dpr.store.proof import prove_put_if_absent
from tests.services.endpoint import S3Endpoint


def test_a_real_server_that_ignores_if_none_match_is_refused(
    nanio_endpoint: S3Endpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = nanio_endpoint.client()
    client.create_bucket(Bucket="hostile")
    for body in (b"1", b"2"):
        client.put_object(Bucket="hostile", Key="around", Body=body, IfNoneMatch="*")
    with client.get_object(Bucket="hostile", Key="around")["Body"] as stored:
        assert stored.read() == b"2"  # it does ignore the condition

    nanio_endpoint.use(monkeypatch)
    store = open_store("s3://hostile/x")
    with pytest.raises(StoreError, match="ignores If-None-Match") as caught:
        prove_put_if_absent(store)
    assert "\n" not in str(caught.value)
    assert "s3://hostile/x" in str(caught.value)
    assert [info.name for info in open_store("s3://hostile").list()] == ["around"]


def test_it_works_in_all_other_respects(
    nanio_endpoint: S3Endpoint, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    nanio_endpoint.client().create_bucket(Bucket="plain")
    nanio_endpoint.use(monkeypatch)
    store = open_store("s3://plain")
    large = bytes(range(256)) * 50_000
    (tmp_path / "large").write_bytes(large)
    assert store.put_file_if_absent("a/large", tmp_path / "large") is True
    assert store.put_file_if_absent("a/large", tmp_path / "large") is False
    store.put("a/small", b"1")
    assert store.get("a/large") == large
    assert store.get_range("a/large", 9_000_000, 300) == large[9_000_000:9_000_300]
    assert [(info.name, info.size_bytes) for info in store.list("a")] == [("a/large", len(large)), ("a/small", 1)]


def test_local_stores_do_without_s3fs() -> None:
    code = "import sys; from dpr.store import open_store; open_store('x'); print('s3fs' in sys.modules)"
    assert subprocess.run((sys.executable, "-c", code), capture_output=True, check=True).stdout == b"False\n"
