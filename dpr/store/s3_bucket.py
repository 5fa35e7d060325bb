"""Requests to one S3 bucket through s3fs: from any thread, after a fork, repeated while that can help."""

import asyncio
import dataclasses
import os
import random
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, TypeVar

import s3fs
from fsspec.asyn import sync

from dpr.errors import MissingObjectError, StoreError
from dpr.store.requests import count_request
from dpr.store.s3_failures import REQUEST_ERRORS, Patience, error_code, explain, without_secrets

T = TypeVar("T")
Attempt = Callable[[], Awaitable[T]]
_random = random.Random()
"""Not Python's shared generator, which a program may have seeded to get the same numbers each time."""


class S3Bucket:
    """A bucket, to which synchronous code sends asynchronous attempts, each made of requests."""

    def __init__(self, name: str, patience: Patience) -> None:
        self.name = name
        self.patience = patience
        self._filesystems: dict[int, s3fs.S3FileSystem] = {}

    def run(self, subject: str, attempt: Attempt[T]) -> T:
        """Return what `attempt` returns, repeated as long as that can help; error messages begin with `subject`.

        Raises MissingObjectError for a missing object, StoreError for every other failure of endpoint or network.
        """
        return self.run_together(subject, [attempt])[0]

    def run_once(self, subject: str, attempt: Attempt[T]) -> T:
        """Do the same without repeating."""
        impatient = dataclasses.replace(self.patience, total_seconds=0.0, unreachable_seconds=0.0)
        return self.run_together(subject, [attempt], impatient)[0]

    def run_together(self, subject: str, attempts: Sequence[Attempt[T]], patience: Patience | None = None) -> list[T]:
        """Return what each of `attempts` returns; all run at once, and one that fails for good cancels the others."""

        async def together() -> list[T]:
            tasks = [asyncio.ensure_future(self._repeat(subject, one, patience or self.patience)) for one in attempts]
            try:
                return await asyncio.gather(*tasks)
            finally:
                for task in tasks:
                    task.cancel()

        results: list[T] = sync(self._filesystem().loop, together)
        return results

    async def request(self, method: str, **arguments: object) -> Any:
        """Send one request to the bucket, within an attempt; `method` and `arguments` are botocore's."""
        body = arguments.get("Body")
        count_request(method, len(body) if isinstance(body, bytes) else 0)
        return await self._filesystem()._call_s3(method, Bucket=self.name, **arguments)

    async def list_buckets(self) -> Any:
        """List the buckets that the credentials may see, within an attempt."""
        count_request("list_buckets", 0)
        return await self._filesystem()._call_s3("list_buckets")

    async def _repeat(self, subject: str, attempt: Attempt[T], patience: Patience) -> T:
        await self._set_up(subject)
        started = time.monotonic()
        bound = patience.first_delay_seconds
        attempts_made = 0
        while True:
            attempts_made += 1
            try:
                return await asyncio.wait_for(attempt(), patience.attempt_seconds)
            except REQUEST_ERRORS as error:
                code, _ = error_code(error)
                if code == "NoSuchKey":
                    raise MissingObjectError(f"{subject}: there is no such object") from error
                failure = explain(error, self.name, self._endpoint(), patience)
                # a random share of a doubling bound, so that workers throttled together do not retry together
                delay = _random.uniform(0, min(bound, patience.longest_delay_seconds))
                bound *= 2
                spent = time.monotonic() - started
                if spent + delay >= failure.retry_seconds:
                    tried = f" after {attempts_made} attempts in {spent:.0f} s" if attempts_made > 1 else ""
                    raise StoreError(f"{subject}: {failure.cause}{tried}; {failure.remedy}") from error
                await asyncio.sleep(delay)

    async def _set_up(self, subject: str) -> None:
        """Read the AWS settings once, outside of any attempt: on a busy machine that may take a second."""
        try:
            await self._filesystem().set_session()
        except (ValueError, *REQUEST_ERRORS) as error:
            failure = explain(error, self.name, self._endpoint(), self.patience)
            raise StoreError(f"{subject}: {failure.cause}; {failure.remedy}") from error

    def _endpoint(self) -> str:
        client = self._filesystem()._s3
        return without_secrets(client.meta.endpoint_url) if client else "S3"

    def _filesystem(self) -> s3fs.S3FileSystem:
        pid = os.getpid()
        if pid not in self._filesystems:  # s3fs does not survive a fork
            filesystem = s3fs.S3FileSystem(
                skip_instance_cache=True,
                use_listings_cache=False,
                config_kwargs={
                    "connect_timeout": self.patience.connect_seconds,
                    "read_timeout": self.patience.read_seconds,
                    "retries": {"mode": "standard", "total_max_attempts": 1},
                    # every upload carries Content-MD5, which all S3 servers know, unlike newer checksums
                    "request_checksum_calculation": "when_required",
                    "response_checksum_validation": "when_required",
                },
            )
            filesystem.retries = 1  # only _repeat repeats: layers of retries multiply
            self._filesystems.setdefault(pid, filesystem)
        return self._filesystems[pid]
