"""A bucket behind a proxy that fails on purpose, and stores that reach the bucket through the proxy."""

import contextlib
import uuid
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest

from dpr.errors import StoreError
from dpr.store.s3 import S3Store
from dpr.store.s3_failures import Patience
from tests.services.endpoint import S3Endpoint
from tests.services.fault_proxy import Fault, FaultProxy

PATIENCE = Patience(total_seconds=60.0, unreachable_seconds=60.0, first_delay_seconds=0.01, longest_delay_seconds=0.05)
HASTE = replace(PATIENCE, read_seconds=0.3)
IMPATIENCE = replace(PATIENCE, total_seconds=1.5, unreachable_seconds=1.5, read_seconds=0.5, attempt_seconds=0.7)


class Rig:
    """A bucket of the server behind the proxy, and a store that reaches it through the proxy."""

    def __init__(self, proxy: FaultProxy, client: Any, knows_conditional_uploads: bool) -> None:
        self.proxy = proxy
        self.knows_conditional_uploads = knows_conditional_uploads
        self.client = client
        self.bucket = f"bucket-{uuid.uuid4().hex[:8]}"
        client.create_bucket(Bucket=self.bucket)
        self.store = S3Store(f"s3://{self.bucket}", PATIENCE)
        self.hasty_store = S3Store(f"s3://{self.bucket}", HASTE)
        self.impatient_store = S3Store(f"s3://{self.bucket}", IMPATIENCE)
        for store in (self.store, self.hasty_store, self.impatient_store):
            with contextlib.suppress(StoreError):  # a busy machine may be too slow
                store.exists("x")  # reads the settings of now

    def store_for(self, fault: Fault) -> S3Store:
        return self.hasty_store if fault == "stall" else self.store

    def reset(self) -> None:
        self.proxy.mend()
        self.proxy.requests.clear()
        for name in self.names():
            self.client.delete_object(Bucket=self.bucket, Key=name)
        for (
            upload
        ) in self.unfinished_uploads():  # begun by requests whose answer got lost, so that nobody knows their ids
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
def rig_before(
    endpoint: S3Endpoint,
    *,
    knows_conditional_uploads: bool = False,
    prepare: Callable[[FaultProxy], object] = lambda _: None,
) -> Iterator[Rig]:
    """Start a proxy, once it is prepared, in front of a server."""
    with FaultProxy(endpoint) as proxy:
        prepare(proxy)
        with pytest.MonkeyPatch.context() as monkeypatch:
            proxy.endpoint.use(monkeypatch)
            rig = Rig(proxy, endpoint.client(), knows_conditional_uploads)
        yield rig
