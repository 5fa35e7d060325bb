"""A store in an S3 bucket, through s3fs.

Endpoint, region and credentials come from where AWS tools look for them: AWS_ENDPOINT_URL (or AWS_ENDPOINT_URL_S3),
AWS_DEFAULT_REGION, AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_PROFILE and its files, instance or container roles.
"""

import base64
import contextlib
import hashlib
import os
import re
import uuid
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TypeVar

from botocore.exceptions import IncompleteReadError
from botocore.parsers import ResponseParserError

from dpr.errors import MissingObjectError, StoreError
from dpr.store.base import ObjectInfo, check_name, check_prefix, check_range
from dpr.store.s3_bucket import Attempt, S3Bucket
from dpr.store.s3_failures import Patience, error_code

T = TypeVar("T")

CHUNK_BYTES = 8 * 2**20
"""What one request moves; more only where an upload would need more than MAX_PARTS of them."""
CONCURRENT_CHUNKS = 4
MAX_PARTS = 10_000
"""S3's own limit of a multipart upload."""

_BUCKET_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{2,254}")


class S3Store:
    """Objects are those of one bucket below one prefix; see Store for what the methods promise.

    Requests that were throttled, timed out or were cut off are repeated after random, doubling delays, within
    `patience`. Every other failure, and the last of these, is a StoreError that says what to do. Works from any
    thread and after a fork, and travels to Ray's workers as its URL: they find credentials of their own.
    """

    def __init__(self, url: str, patience: Patience | None = None) -> None:
        bucket, _, prefix = url.removeprefix("s3://").partition("/")
        if not _BUCKET_NAME.fullmatch(bucket):
            # such a URL is not repeated: it may hold a secret (s3://key:secret@bucket)
            raise StoreError("the store's URL names no plain bucket; write s3://bucket/prefix and nothing else in it")
        prefix = prefix.strip("/")
        self._prefix = f"{check_name(prefix)}/" if prefix else ""
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
        # not HEAD: its answers have no body, so that a missing bucket would pass for a missing object
        return self._run(name, partial(self._read, name, 0, 1))[1]

    def exists(self, name: str) -> bool:
        try:
            self.size(name)
        except MissingObjectError:
            return False
        return True

    def put(self, name: str, data: bytes) -> None:
        self._upload(name, len(data), lambda start, length: data[start : start + length])

    def put_file(self, name: str, path: Path) -> None:
        try:
            with path.open("rb") as file:
                descriptor = file.fileno()
                size_bytes = os.fstat(descriptor).st_size
                self._upload(name, size_bytes, lambda start, length: os.pread(descriptor, length, start))
        except OSError as error:
            raise StoreError(f"file {path} cannot be read: {error.strerror or error}") from error

    def put_if_absent(self, name: str, data: bytes) -> bool:
        key, writer = self._key(name), uuid.uuid4().hex

        async def create() -> bool:
            try:
                await self._put_object(key, data, IfNoneMatch="*", Metadata={"writer": writer})
            except OSError as error:
                if error_code(error)[1] != 412:
                    raise
                # whoever repeated a put whose answer got lost (aiohttp does so unasked) is refused by its own object
                found = await self._bucket.request("head_object", Key=key)
                return bool(found["Metadata"].get("writer") == writer)
            return True

        return self._run(name, create)

    def fetch(self, name: str, path: Path) -> None:
        temporary = path.with_name(f".tmp-{uuid.uuid4().hex}")
        try:
            with temporary.open("wb") as file:
                for chunk in self._chunks(name):
                    file.write(chunk)
            os.replace(temporary, path)
        except OSError as error:
            raise StoreError(f"object {name} cannot be copied to {path}: {error.strerror or error}") from error
        finally:
            temporary.unlink(missing_ok=True)

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
        return ()  # of uploads whose answer got lost nothing is known; the bucket's own rule aborts them

    def _chunks(self, name: str, start: int = 0, length: int | None = None) -> Iterator[bytes]:
        """The object's bytes from `start`, in order, CONCURRENT_CHUNKS chunks in memory at most."""
        first_bytes = CHUNK_BYTES if length is None else min(CHUNK_BYTES, length)
        first, size_bytes = self._run(name, partial(self._read, name, start, first_bytes))
        yield first
        end = size_bytes if length is None else min(size_bytes, start + length)
        starts = range(start + CHUNK_BYTES, end, CHUNK_BYTES)
        for window in _windows(starts):
            reads = [partial(self._read, name, at, min(CHUNK_BYTES, end - at)) for at in window]
            for chunk, _ in self._bucket.run_together(self._subject(name), reads):
                yield chunk

    async def _read(self, name: str, start: int, length: int) -> tuple[bytes, int]:
        """Up to `length` > 0 bytes from `start`, and the size of the whole object (at most `start` if past it)."""
        span = f"bytes={start}-{start + length - 1}"
        try:
            response = await self._bucket.request("get_object", Key=self._key(name), Range=span)
        except OSError as error:
            if error_code(error)[1] != 416:
                raise
            return b"", start  # nothing from there on; an empty object answers so at 0
        async with response["Body"] as body:
            data: bytes = await body.read()
        if "ContentRange" not in response:
            if not data:  # an empty object has no ranges, and not every server answers 416
                return b"", 0
            # S3 honours ranges; this is some web server's front page
            raise ResponseParserError("no Content-Range in the answer to a ranged get")
        size_bytes = int(response["ContentRange"].rpartition("/")[2])
        expected_bytes = min(length, size_bytes - start)
        if len(data) != expected_bytes:
            raise IncompleteReadError(actual_bytes=len(data), expected_bytes=expected_bytes)
        return data, size_bytes

    def _upload(self, name: str, size_bytes: int, read: Callable[[int, int], bytes]) -> None:
        """Create the object from `read(start, length)`, in one request or, if it is large, in parts."""

        def exactly(start: int, length: int) -> bytes:
            data = read(start, length)
            if len(data) != length:
                raise StoreError(f"{self._subject(name)}: the file to be uploaded shrank meanwhile; leave it alone")
            return data

        key = self._key(name)
        if size_bytes <= CHUNK_BYTES:
            self._run(name, partial(self._put_object, key, exactly(0, size_bytes)))
            return
        part_bytes = max(CHUNK_BYTES, -(-size_bytes // MAX_PARTS))
        upload = {"Key": key}
        begun = self._run(name, partial(self._bucket.request, "create_multipart_upload", **upload))
        upload["UploadId"] = begun["UploadId"]
        parts = []
        try:
            for window in _windows(range(0, size_bytes, part_bytes)):
                bodies = [(at // part_bytes + 1, exactly(at, min(part_bytes, size_bytes - at))) for at in window]
                sends = [partial(self._put_part, upload, number, body) for number, body in bodies]
                parts += self._bucket.run_together(self._subject(name), sends)
            self._run(name, partial(self._complete, name, upload, parts, size_bytes))
        except BaseException:
            with contextlib.suppress(StoreError):  # the first error says more, and parts alone are no object
                abort = partial(self._bucket.request, "abort_multipart_upload", **upload)
                self._bucket.run_once(self._subject(name), abort)
            raise

    async def _put_object(self, key: str, data: bytes, **more: object) -> None:
        await self._bucket.request("put_object", Key=key, Body=data, ContentMD5=_md5(data), **more)

    async def _put_part(self, upload: dict[str, str], number: int, data: bytes) -> dict[str, object]:
        answer = await self._bucket.request(
            "upload_part", PartNumber=number, Body=data, ContentMD5=_md5(data), **upload
        )
        return {"PartNumber": number, "ETag": answer["ETag"]}

    async def _complete(self, name: str, upload: dict[str, str], parts: Sequence[object], size_bytes: int) -> None:
        try:
            await self._bucket.request("complete_multipart_upload", MultipartUpload={"Parts": parts}, **upload)
        except OSError as error:
            if error_code(error)[0] != "NoSuchUpload":
                raise
            # an earlier attempt, whose answer got lost, has completed it already
            if (await self._read(name, 0, 1))[1] != size_bytes:
                raise

    def _run(self, name: str, attempt: Attempt[T]) -> T:
        return self._bucket.run(self._subject(name), attempt)

    def _subject(self, name: str) -> str:
        return f"store {self.url}, object {name}"

    def _key(self, name: str) -> str:
        return self._prefix + check_name(name)


def _windows(starts: Sequence[int]) -> Iterator[Sequence[int]]:
    for first in range(0, len(starts), CONCURRENT_CHUNKS):
        yield starts[first : first + CONCURRENT_CHUNKS]


def _md5(data: bytes) -> str:
    return base64.b64encode(hashlib.md5(data, usedforsecurity=False).digest()).decode()
