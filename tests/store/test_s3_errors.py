"""Mistakes in URLs, settings and rights: one sentence that says what to do, and never a secret."""

import json
import tempfile
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from dpr.errors import MissingObjectError, StoreError
from dpr.store import open_store
from dpr.store.s3 import S3Store
from dpr.store.s3_failures import Patience
from tests.services.endpoint import S3Endpoint, free_ports

SECRET = "hush-hush-secret"
IMPATIENCE = Patience(total_seconds=0.3, unreachable_seconds=0.3, first_delay_seconds=0.01)

LARGE_BYTES = 10_000_000
"""More than one request moves."""

CALLS: dict[str, Callable[[S3Store, Path], object]] = {
    "get": lambda store, _: store.get("a"),
    "get_range": lambda store, _: store.get_range("a", 1, 1),
    "size": lambda store, _: store.size("a"),
    "exists": lambda store, _: store.exists("a"),
    "put": lambda store, _: store.put("a", b"1"),
    "put_if_absent": lambda store, _: store.put_if_absent("a", b"1"),
    "put_file_if_absent": lambda store, _: store.put_file_if_absent("a", Path(__file__)),
    "put_file_if_absent of a large file": lambda store, large: store.put_file_if_absent("a", large),
    "list": lambda store, _: list(store.list()),
    "delete": lambda store, _: store.delete("a"),
}


@pytest.fixture
def settings() -> Iterator[pytest.MonkeyPatch]:
    with pytest.MonkeyPatch.context() as monkeypatch:
        yield monkeypatch


def message_of(store: S3Store, call: str) -> str:
    with tempfile.NamedTemporaryFile() as large:
        large.truncate(LARGE_BYTES)
        with pytest.raises(StoreError) as caught:
            CALLS[call](store, Path(large.name))
    assert not isinstance(caught.value, MissingObjectError)
    message = str(caught.value)
    assert "\n" not in message
    assert ". " not in message
    assert SECRET not in message
    return message


def new_bucket(endpoint: S3Endpoint) -> str:
    bucket = f"bucket-{uuid.uuid4().hex[:8]}"
    endpoint.client().create_bucket(Bucket=bucket)
    return bucket


@pytest.mark.parametrize("server", ["moto", "ceph"])
def test_missing_bucket(request: pytest.FixtureRequest, settings: pytest.MonkeyPatch, server: str) -> None:
    endpoint = request.getfixturevalue(f"{server}_endpoint")
    endpoint.use(settings)
    store = S3Store("s3://no-such-bucket/x")
    for call in CALLS:
        message = message_of(store, call)
        assert message.startswith("store s3://no-such-bucket/x, object ")
        assert message.endswith(
            f"there is no bucket no-such-bucket at {endpoint.url}; create it or correct the store's URL"
        )


def test_wrong_secret(ceph_endpoint: S3Endpoint, settings: pytest.MonkeyPatch) -> None:
    bucket = new_bucket(ceph_endpoint)
    ceph_endpoint.use(settings)
    settings.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    store = S3Store(f"s3://{bucket}")
    for call in CALLS:
        message = message_of(store, call)
        assert "refused the credentials" in message
        assert ceph_endpoint.access_key not in message


def test_access_denied(ceph_endpoint: S3Endpoint, settings: pytest.MonkeyPatch) -> None:
    bucket = new_bucket(ceph_endpoint)
    client = ceph_endpoint.client()
    client.put_object(Bucket=bucket, Key="a", Body=b"12")
    deny = {
        "Effect": "Deny",
        "Principal": "*",
        "Action": ["s3:GetObject", "s3:PutObject", "s3:DeleteObject", "s3:ListBucket"],
        "Resource": [f"arn:aws:s3:::{bucket}", f"arn:aws:s3:::{bucket}/*"],
    }
    client.put_bucket_policy(Bucket=bucket, Policy=json.dumps({"Version": "2012-10-17", "Statement": [deny]}))
    ceph_endpoint.use(settings)
    store = S3Store(f"s3://{bucket}")
    for call in CALLS:
        message = message_of(store, call)
        assert "access is denied" in message
        assert f"s3:ListBucket on bucket {bucket}" in message


def test_rights_that_no_store_needs_are_named(ceph_endpoint: S3Endpoint, settings: pytest.MonkeyPatch) -> None:
    ceph_endpoint.use(settings)
    bucket = new_bucket(ceph_endpoint)
    store = S3Store(f"s3://{bucket}/here")
    everywhere = ("list all buckets of the account", "list objects outside of here/")
    assert store.needless_rights() == everywhere
    deny = {
        "Effect": "Deny",
        "Principal": "*",
        "Action": "s3:ListBucket",
        "Resource": f"arn:aws:s3:::{bucket}",
        "Condition": {"StringNotLike": {"s3:prefix": "here/*"}},
    }
    policy = json.dumps({"Version": "2012-10-17", "Statement": [deny]})
    ceph_endpoint.client().put_bucket_policy(Bucket=bucket, Policy=policy)
    assert store.needless_rights() == everywhere[:1]
    assert list(store.list()) == []


def test_no_credentials(moto_endpoint: S3Endpoint, settings: pytest.MonkeyPatch) -> None:
    moto_endpoint.use(settings)
    settings.delenv("AWS_ACCESS_KEY_ID")
    settings.delenv("AWS_SECRET_ACCESS_KEY")
    assert "set AWS_ACCESS_KEY_ID" in message_of(S3Store("s3://bucket"), "get")


def test_profile_that_is_not_there(moto_endpoint: S3Endpoint, settings: pytest.MonkeyPatch) -> None:
    moto_endpoint.use(settings)
    settings.setenv("AWS_PROFILE", "nightly")
    assert "(The config profile (nightly) could not be found)" in message_of(S3Store("s3://bucket"), "get")


def test_endpoint_that_is_not_there(moto_endpoint: S3Endpoint, settings: pytest.MonkeyPatch) -> None:
    moto_endpoint.use(settings)
    (port,) = free_ports(1)
    settings.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{port}")
    message = message_of(S3Store("s3://bucket", IMPATIENCE), "put")
    assert f"cannot connect to http://127.0.0.1:{port}" in message
    assert "check AWS_ENDPOINT_URL" in message


@pytest.mark.parametrize(
    "url", [f"no url {SECRET}", f"http://[{SECRET}", f"http://u:{SECRET}@127.0.0.1:9", "http://127.0.0.1:port"]
)
def test_endpoint_that_cannot_be(moto_endpoint: S3Endpoint, settings: pytest.MonkeyPatch, url: str) -> None:
    moto_endpoint.use(settings)
    settings.setenv("AWS_ENDPOINT_URL", url)
    assert "AWS_ENDPOINT_URL" in message_of(S3Store("s3://bucket", IMPATIENCE), "get")


@pytest.mark.parametrize(
    "url", ["s3://", "s3:///prefix", "s3://a", f"s3://key:{SECRET}@bucket/x", "s3://bucket name/x", "s3://bucket/../x"]
)
def test_url_that_names_no_bucket(url: str) -> None:
    with pytest.raises(StoreError) as caught:
        open_store(url)
    assert SECRET not in str(caught.value)


@pytest.mark.parametrize(("url", "normal"), [("s3://bucket/", "s3://bucket"), ("s3://bucket/a/b/", "s3://bucket/a/b")])
def test_urls_are_normalised(url: str, normal: str) -> None:
    assert open_store(url).url == normal


def test_settings_come_from_a_profile(moto_endpoint: S3Endpoint, settings: pytest.MonkeyPatch, tmp_path: Path) -> None:
    bucket, client = new_bucket(moto_endpoint), moto_endpoint.client()
    moto_endpoint.use(settings)
    for name in ("AWS_ENDPOINT_URL", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        settings.delenv(name)
    (tmp_path / "config").write_text(
        f"[profile nightly]\nendpoint_url = {moto_endpoint.url}\n"
        "aws_access_key_id = of-the-profile\naws_secret_access_key = s\nregion = eu-central-1\n"
    )
    settings.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    settings.setenv("AWS_PROFILE", "nightly")
    open_store(f"s3://{bucket}/x").put("a", b"1")
    assert client.get_object(Bucket=bucket, Key="x/a")["ContentLength"] == 1


def test_the_endpoint_of_s3_alone_goes_first(moto_endpoint: S3Endpoint, settings: pytest.MonkeyPatch) -> None:
    bucket = new_bucket(moto_endpoint)
    moto_endpoint.use(settings)
    settings.setenv("AWS_ENDPOINT_URL_S3", moto_endpoint.url)
    settings.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    assert list(S3Store(f"s3://{bucket}", IMPATIENCE).list()) == []


def test_folders_made_by_consoles_are_no_objects(moto_endpoint: S3Endpoint, settings: pytest.MonkeyPatch) -> None:
    bucket = new_bucket(moto_endpoint)
    moto_endpoint.use(settings)
    for key in ("x/", "x/folder/", "x/folder/a"):
        moto_endpoint.client().put_object(Bucket=bucket, Key=key, Body=b"")
    assert [info.name for info in open_store(f"s3://{bucket}/x").list()] == ["folder/a"]
