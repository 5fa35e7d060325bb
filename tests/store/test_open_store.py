"""Stores of one URL share what they know of their bucket, and no store outlives the settings that it was made with."""

import uuid
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from dpr.errors import StoreError
from dpr.store import open_store
from dpr.store.s3_bucket import S3Bucket
from tests.services.endpoint import S3Endpoint

pytestmark = pytest.mark.s3


@pytest.mark.parametrize("url", ["s3:/bucket/prefix", "S3:/bucket", "s3:bucket", "/recipes/s3:/bucket/x"])
def test_an_address_of_s3_that_lacks_a_slash_makes_no_folder(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A night would otherwise be published into a folder of that name on one machine."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(StoreError, match=f"store {url} is neither a folder nor a URL of S3; write s3://bucket/prefix"):
        open_store(url)
    assert open_store("./s3").url == str(tmp_path / "s3")


@pytest.mark.parametrize("prefix", ["a//b", "a/../b", "./a", "a\\b", "a\x7f"])
def test_a_prefix_that_names_no_objects_is_refused_by_its_name(prefix: str) -> None:
    with pytest.raises(StoreError) as refused:
        open_store(f"s3://bucket/{prefix}")
    assert f"the store's prefix {prefix!r} in bucket bucket is not a plain path" in str(refused.value)


@pytest.fixture
def bucket_url(moto_endpoint: S3Endpoint, monkeypatch: pytest.MonkeyPatch) -> str:
    moto_endpoint.use(monkeypatch)
    bucket = f"bucket-{uuid.uuid4().hex[:8]}"
    moto_endpoint.client().create_bucket(Bucket=bucket)
    return f"s3://{bucket}/x"


def clients_made(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Return a list that grows with each client that is made from now on."""
    made: list[int] = []
    make = S3Bucket.__init__

    def count(self: S3Bucket, *arguments: object) -> None:
        made.append(1)
        make(self, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(S3Bucket, "__init__", count)
    return made


def test_all_who_open_a_url_use_one_client(bucket_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    made = clients_made(monkeypatch)
    open_store(bucket_url).put("0", b"0")

    def round_trip(number: int) -> bytes:
        open_store(bucket_url).put(f"{number}", b"%d" % number)
        return open_store(bucket_url).get(f"{number}")

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(round_trip, range(32))) == [b"%d" % number for number in range(32)]
    assert len(made) == 1
    assert {info.name for info in open_store(bucket_url).list()} == {f"{number}" for number in range(32)}


def test_other_settings_and_other_urls_have_clients_of_their_own(
    bucket_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    open_store(bucket_url).put("a", b"1")
    assert open_store(f"{bucket_url}/y").exists("a") is False
    with monkeypatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
        elsewhere = open_store(bucket_url)
    assert elsewhere is not open_store(bucket_url)
    assert open_store(bucket_url).get("a") == b"1"
