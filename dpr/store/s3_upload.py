"""Creating S3 objects: in one request, or in parts where a file is large. The object appears whole or not at all.

A put-if-absent whose answer gets lost is repeated, by this store or automatically by aiohttp, and the server then
refuses it because of the object that the first request created. So each writer leaves a random id in the object's
metadata, and looks for its own id when it is refused.
"""

import base64
import contextlib
import hashlib
import uuid
from collections.abc import Callable, Iterator, Sequence
from functools import partial

from dpr.errors import StoreError
from dpr.store.s3_bucket import S3Bucket
from dpr.store.s3_failures import error_code

CHUNK_BYTES = 8 * 2**20
"""Bytes of one request; more only if an upload would need more than MAX_PARTS of them."""
CONCURRENT_CHUNKS = 4
MAX_PARTS = 10_000
"""S3's own limit of a multipart upload."""


class S3Upload:
    """The creation of one object of a bucket; error messages begin with `subject`."""

    def __init__(self, bucket: S3Bucket, key: str, subject: str) -> None:
        self._bucket = bucket
        self._key = key
        self._subject = subject
        self._writer = uuid.uuid4().hex

    def put(self, data: bytes) -> None:
        """Create or replace the object in one request."""
        self._bucket.run(self._subject, partial(self._put, data))

    def put_if_absent(self, data: bytes) -> bool:
        """Create the object in one request unless it is there; return whether this call created it."""

        async def create() -> bool:
            try:
                await self._put(data, IfNoneMatch="*", Metadata={"writer": self._writer})
            except OSError as error:
                if error_code(error)[1] == 412:
                    with contextlib.suppress(FileNotFoundError):
                        return await self._is_own()
                raise
            return True

        return self._bucket.run(self._subject, create)

    def put_in_parts_if_absent(self, size_bytes: int, read: Callable[[int, int], bytes]) -> bool:
        """Create the object from `read(start, length)` unless it is there; return whether this call created it.

        The caller has checked that the object is not there. Of writers that finish at the same moment, a server that
        does not know conditions for uploads in parts tells each that it created the object.
        """
        begin = partial(
            self._bucket.request, "create_multipart_upload", Key=self._key, Metadata={"writer": self._writer}
        )
        upload = self._bucket.run(self._subject, begin)["UploadId"]
        part_bytes = max(CHUNK_BYTES, -(-size_bytes // MAX_PARTS))
        parts: list[dict[str, object]] = []
        created = False
        try:
            for window in windows(range(0, size_bytes, part_bytes)):
                bodies = [(at // part_bytes + 1, read(at, min(part_bytes, size_bytes - at))) for at in window]
                sends = [partial(self._put_part, upload, number, body) for number, body in bodies]
                parts += self._bucket.run_together(self._subject, sends)
            created = self._bucket.run(self._subject, partial(self._complete, upload, parts, {"IfNoneMatch": "*"}))
        finally:
            if not created:
                self._abort(upload)
        return created

    async def _put(self, data: bytes, **more: object) -> None:
        await self._bucket.request("put_object", Key=self._key, Body=data, ContentMD5=_md5(data), **more)

    async def _put_part(self, upload: str, number: int, data: bytes) -> dict[str, object]:
        answer = await self._bucket.request(
            "upload_part", Key=self._key, UploadId=upload, PartNumber=number, Body=data, ContentMD5=_md5(data)
        )
        return {"PartNumber": number, "ETag": answer["ETag"]}

    async def _complete(self, upload: str, parts: Sequence[object], condition: dict[str, str]) -> bool:
        """Make one object of the parts; return whether this upload created it."""
        try:
            await self._bucket.request(
                "complete_multipart_upload",
                Key=self._key,
                UploadId=upload,
                MultipartUpload={"Parts": parts},
                **condition,
            )
        except OSError as error:
            code, status = error_code(error)
            if condition and (code == "NotImplemented" or status == 501):
                return await self._complete(upload, parts, {})
            if status == 412 or code == "NoSuchUpload":  # an earlier attempt may have completed it, its answer lost
                with contextlib.suppress(FileNotFoundError):
                    return await self._is_own()
            raise
        return True

    async def _is_own(self) -> bool:
        """Return whether this writer created the object that is there. Raises FileNotFoundError if there is none."""
        found = await self._bucket.request("head_object", Key=self._key)
        return bool(found["Metadata"].get("writer") == self._writer)

    def _abort(self, upload: str) -> None:
        """Remove the parts, which are not an object but take space."""
        abort = partial(self._bucket.request, "abort_multipart_upload", Key=self._key, UploadId=upload)
        with contextlib.suppress(StoreError):  # the bucket's own rule removes them later; the first error says more
            self._bucket.run_once(self._subject, abort)


def windows(starts: Sequence[int]) -> Iterator[Sequence[int]]:
    """Yield the starts of chunks, as many at a time as may be under way at once."""
    for first in range(0, len(starts), CONCURRENT_CHUNKS):
        yield starts[first : first + CONCURRENT_CHUNKS]


def _md5(data: bytes) -> str:
    return base64.b64encode(hashlib.md5(data, usedforsecurity=False).digest()).decode()
