"""Stores under test, each with a way around it."""

import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from dpr.store import LocalStore, Store, open_store
from tests.services.endpoint import S3Endpoint
from tests.store.s3_rig import Rig, rig_before


class LocalBackend:
    """A folder, reached by plain file I/O."""

    conditional_puts_are_atomic = True

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.store: Store = LocalStore(folder)
        self.environment: dict[str, str] = {}

    def write(self, name: str, data: bytes) -> None:
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)

    def read(self, name: str) -> bytes:
        return (self.folder / name).read_bytes()

    def names(self, prefix: str) -> list[str]:
        files = (path for path in self.folder.rglob("*") if path.is_file())
        return sorted(
            name for name in (path.relative_to(self.folder).as_posix() for path in files) if name.startswith(prefix)
        )


class S3Backend:
    """A bucket, reached by boto3."""

    def __init__(self, endpoint: S3Endpoint, bucket: str, atomic: bool) -> None:
        self.client: Any = endpoint.client()
        self.client.create_bucket(Bucket=bucket)
        self.bucket = bucket
        self.environment = endpoint.environment()
        self.conditional_puts_are_atomic = atomic
        self.store = open_store(f"s3://{bucket}/some/prefix")

    def write(self, name: str, data: bytes) -> None:
        self.client.put_object(Bucket=self.bucket, Key=f"some/prefix/{name}", Body=data)

    def read(self, name: str) -> bytes:
        body = self.client.get_object(Bucket=self.bucket, Key=f"some/prefix/{name}")["Body"]
        with body:
            data: bytes = body.read()
        return data

    def names(self, prefix: str) -> list[str]:
        pages = self.client.get_paginator("list_objects_v2").paginate(
            Bucket=self.bucket, Prefix=f"some/prefix/{prefix}"
        )
        return [found["Key"].removeprefix("some/prefix/") for page in pages for found in page.get("Contents", ())]


Backend = LocalBackend | S3Backend


@pytest.fixture(scope="module", params=["local", "moto", "ceph"])
def backend(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Backend]:
    """A store, once of each kind."""
    if request.param == "local":
        yield LocalBackend(tmp_path_factory.mktemp("store"))
        return
    endpoint = request.getfixturevalue(f"{request.param}_endpoint")
    with pytest.MonkeyPatch.context() as monkeypatch:
        endpoint.use(monkeypatch)
        yield S3Backend(endpoint, f"bucket-{uuid.uuid4().hex[:8]}", atomic=request.param != "moto")


@pytest.fixture
def folder() -> str:
    """A prefix that no other test uses."""
    return f"{uuid.uuid4().hex[:8]}/"


@pytest.fixture(scope="module")
def moto_rig(moto_endpoint: S3Endpoint) -> Iterator[Rig]:
    with rig_before(moto_endpoint, knows_conditional_uploads=True) as rig:
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
