"""Limits of one replica: the size of bodies and the time for sending them, the number of requests, and their time."""

import asyncio

from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ray_jobs.serve.messages import MAX_BODY_BYTES
from ray_jobs.serve.prometheus import Metrics
from ray_jobs.serve.refusals import RETRY_SECONDS, refusal

MAX_UNDER_WAY = 384
"""Requests in progress; fewer than Serve accepts, so that this module refuses, not Serve."""
BODY_SECONDS = 20.0
REQUEST_SECONDS = 60.0
"""Seconds for receiving a body, and for an answer. Re-ranking the most pairs that one request may have takes 23."""
ALWAYS = ("/v1/health", "/v1/ready", "/metrics")
"""Probes are answered, however many requests are under way."""


class Limits:
    """Refuses requests beyond the limits; a request that runs out of time is cancelled and leaves the queue."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self._app, self._metrics = app, metrics
        self._under_way = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] in ALWAYS:
            await self._app(scope, receive, send)
            return
        if self._under_way >= MAX_UNDER_WAY:
            self._metrics.refused("overload")
            why = f"{MAX_UNDER_WAY} requests are under way, and no more are taken; ask again in a moment"
            await refusal(503, why, {"Retry-After": str(RETRY_SECONDS)})(scope, receive, send)
            return
        self._under_way += 1
        try:
            await self._within_time(scope, receive, send)
        finally:
            self._under_way -= 1

    async def _within_time(self, scope: Scope, receive: Receive, send: Send) -> None:
        begun = False

        async def answer(message: Message) -> None:
            nonlocal begun
            begun = True
            await send(message)

        try:
            async with asyncio.timeout(REQUEST_SECONDS):
                await self._app(scope, _Body(receive).receive, answer)
        except TimeoutError:
            if begun:
                raise
            self._metrics.refused("time")
            why = f"no answer was found within {REQUEST_SECONDS:.0f} s; send fewer questions at once, or ask again"
            await refusal(503, why, {"Retry-After": str(RETRY_SECONDS)})(scope, receive, send)


class _Body:
    """Reads a body: as many bytes as are allowed, in the time that it may take."""

    def __init__(self, receive: Receive) -> None:
        self._receive, self._read_bytes, self._is_whole = receive, 0, False
        self._until = asyncio.get_running_loop().time() + BODY_SECONDS

    async def receive(self) -> Message:
        """Return the next part. Raises HTTPException if it is too much or comes too late."""
        if self._is_whole:  # after the body comes only the end of the connection, which an answer may wait for
            return await self._receive()
        try:
            async with asyncio.timeout_at(self._until):
                message = await self._receive()
        except TimeoutError:
            raise HTTPException(408, f"the body did not come within {BODY_SECONDS:.0f} s; send it at once") from None
        self._read_bytes += len(message.get("body", b""))
        self._is_whole = not message.get("more_body", False)
        if self._read_bytes > MAX_BODY_BYTES:
            raise HTTPException(413)
        return message
