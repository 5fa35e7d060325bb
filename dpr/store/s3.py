"""A store in an S3 bucket, through s3fs.

Endpoint, region and credentials come from where AWS tools look for them: AWS_ENDPOINT_URL (or AWS_ENDPOINT_URL_S3),
AWS_DEFAULT_REGION, AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_PROFILE and its files, instance or container roles.
"""

import contextlib
import os
import re
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import TypeVar

from botocore.exceptions import IncompleteReadError
from botocore.parsers import ResponseParserError

from dpr.errors import MissingObjectError, StoreError
from dpr.store.base import ObjectInfo, check_name, check_prefix, check_range, whole_copy
from dpr.store.reasons import reason_of
from dpr.store.requests import count_read
from dpr.store.s3_bucket import Attempt, S3Bucket
from dpr.store.s3_failures import Patience, error_code
from dpr.store.s3_upload import CHUNK_BYTES, S3Upload, windows

T = TypeVar("T")

_BUCKET_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{2,254}")


class S3Store:
    """A store whose objects lie in one bucket, below one prefix. See Store for the methods.

    Requests that were throttled, timed out or were cut off are repeated after random, doubling delays, within
    `patience`. Every other failure, and the last of these, is a StoreError that says what to do. A store works from
    any thread and after a fork. It is pickled as its URL: other machines find credentials of their own.
    """

    def __init__(self, url: str, patience: Patience | None = None) -> None:
        bucket, _, prefix = url.removeprefix("s3://").partition("/")
        if not _BUCKET_NAME.fullmatch(bucket):
            # the message does not repeat such a URL: it may hold a secret (s3://key:secret@bucket)
            raise StoreError("the store's URL names no plain bucket; write s3://bucket/prefix and nothing else in it")
        prefix = prefix.strip("/")
        try:
            check_name(prefix or "none")
        except StoreError as error:
            raise StoreError(
                f"the store's prefix {prefix!r} in bucket {bucket} is not a plain path such as nightly/wiki: no part "
                "of it may be empty, `.` or `..`, nor may it have backslashes or unprintable characters; correct it"
            ) from error
        self._prefix = f"{prefix}/" if prefix else ""
        self._bucket = S3Bucket(bucket, patience or Patience())
        self.url = f"s3://{bucket}/{prefix}".rstrip("/")

    def __reduce__(self) -> tuple[object, ...]:
        return S3Store, (self.url, self._bucket.patience)

    def get(self, name: str) -> bytes:
        return b"".join(self._chunks(name))

    def get_range(self, name: str, start: int, length: int) -> bytes:
        check_range(start, length)
        if length == 0:  # HTTP has no empty ranges
            self.size(name)
            return b""
        return b"".join(self._chunks(name, start, length))

    def size(self, name: str) -> int:
        # not HEAD: without a body in its answer, a missing bucket would look like a missing object
        return self._run(name, partial(self._read, name, 0, 1))[1]

    def exists(self, name: str) -> bool:
        try:
            self.size(name)
        except MissingObjectError:
            return False
        return True

    def put(self, name: str, data: bytes) -> None:
        self._upload(name).put(data)

    def put_if_absent(self, name: str, data: bytes) -> bool:
        return self._upload(name).put_if_absent(data)

    def put_file_if_absent(self, name: str, path: Path) -> bool:
        upload = self._upload(name)
        try:
            with path.open("rb") as file:
                descriptor = file.fileno()
                size_bytes = os.fstat(descriptor).st_size

                def read(start: int, length: int) -> bytes:
                    data = os.pread(descriptor, length, start)
                    if len(data) != length:
                        raise StoreError(
                            f"{self._subject(name)}: file {path} shrank while it was uploaded; leave it as it is and "
                            "start again"
                        )
                    return data

                if size_bytes <= CHUNK_BYTES:
                    return upload.put_if_absent(read(0, size_bytes))
                return not self.exists(name) and upload.put_in_parts_if_absent(size_bytes, read)
        except OSError as error:
            raise StoreError(
                f"file {path} cannot be read, so it was not stored as {name} in store {self.url} ({reason_of(error)})"
            ) from error

    def fetch(self, name: str, path: Path) -> None:
        with whole_copy(self.url, name, path) as temporary, temporary.open("wb") as file:
            for chunk in self._chunks(name):
                file.write(chunk)

    def local_path(self, name: str) -> Path | None:
        check_name(name)
        return None

    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        place: dict[str, object] = {"Prefix": self._prefix + check_prefix(prefix)}
        while True:
            page = self._run(f"{prefix}*", partial(self._bucket.request, "list_objects_v2", **place))
            for entry in page.get("Contents", ()):
                name = entry["Key"].removeprefix(self._prefix)
                if name and not name.endswith("/"):  # consoles create such empty objects to show folders
                    yield ObjectInfo(name, entry["Size"], entry["LastModified"].timestamp())
            if not page.get("IsTruncated"):
                return
            place["ContinuationToken"] = page["NextContinuationToken"]

    def delete(self, name: str) -> None:
        with contextlib.suppress(MissingObjectError):
            self._run(name, partial(self._bucket.request, "delete_object", Key=self._key(name)))

    def leftovers(self, before: float, *, delete: bool = False) -> tuple[ObjectInfo, ...]:  # noqa: ARG002
        return ()  # uploads that were never completed have ids that nobody knows; the bucket's own rule removes them

    def needless_rights(self) -> tuple[str, ...]:
        tried = {"list all buckets of the account": self._bucket.list_buckets}
        if self._prefix:  # Ceph does not compare a prefix that is missing with a policy
            elsewhere = partial(self._bucket.request, "list_objects_v2", Prefix=f"not-{self._prefix}", MaxKeys=1)
            tried[f"list objects outside of {self._prefix}"] = elsewhere
        allowed = []
        for right, attempt in tried.items():
            with contextlib.suppress(StoreError):
                self._bucket.run_once(self.url, attempt)
                allowed.append(right)
        return tuple(allowed)

    def _chunks(self, name: str, start: int = 0, length: int | None = None) -> Iterator[bytes]:
        """Yield the object's bytes from `start`, in order, with at most CONCURRENT_CHUNKS chunks in memory."""
        first_bytes = CHUNK_BYTES if length is None else min(CHUNK_BYTES, length)
        first, size_bytes = self._run(name, partial(self._read, name, start, first_bytes))
        yield first
        end = size_bytes if length is None else min(size_bytes, start + length)
        starts = range(start + CHUNK_BYTES, end, CHUNK_BYTES)
        for window in windows(starts):
            reads = [partial(self._read, name, at, min(CHUNK_BYTES, end - at)) for at in window]
            for chunk, _ in self._bucket.run_together(self._subject(name), reads):
                yield chunk

    async def _read(self, name: str, start: int, length: int) -> tuple[bytes, int]:
        """Return up to `length` > 0 bytes from `start`, and the object's size (at most `start` if that is past it)."""
        span = f"bytes={start}-{start + length - 1}"
        try:
            response = await self._bucket.request("get_object", Key=self._key(name), Range=span)
        except OSError as error:
            if error_code(error)[1] != 416:
                raise
            return b"", start  # nothing from there on; an empty object answers so at 0
        async with response["Body"] as body:
            data: bytes = await body.read()
        count_read(len(data))
        if "ContentRange" not in response:
            if not data:  # an empty object has no ranges, and not every server answers 416
                return b"", 0
            # S3 honours ranges; this is the front page of some web server
            raise ResponseParserError("no Content-Range in the answer to a ranged get")
        size_bytes = int(response["ContentRange"].rpartition("/")[2])
        expected_bytes = min(length, size_bytes - start)
        if len(data) != expected_bytes:
            raise IncompleteReadError(actual_bytes=len(data), expected_bytes=expected_bytes)
        return data, size_bytes

    def _upload(self, name: str) -> S3Upload:
        return S3Upload(self._bucket, self._key(name), self._subject(name))

    def _run(self, name: str, attempt: Attempt[T]) -> T:
        return self._bucket.run(self._subject(name), attempt)

    def _subject(self, name: str) -> str:
        return f"store {self.url}, object {name}"

    def _key(self, name: str) -> str:
        return self._prefix + check_name(name)
