"""Limits of one replica: the size of bodies and the time for sending them, the number of requests, and their time.

A request ends, too, when its client hangs up before there is an answer.
"""

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
WATCH_SECONDS = 0.25
"""After so long, it is watched whether the client of a request hangs up. To watch each request would take as long as to
read it, and most are answered sooner."""
ALWAYS = ("/v1/health", "/v1/ready", "/metrics")
"""Probes are answered, however many requests are under way."""


class Limits:
    """Refuses requests beyond the limits.

    A request that runs out of time, or whose client hangs up, is cancelled and leaves the queue.
    """

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self._app, self._metrics = app, metrics
        self._under_way: set[_Body] = set()
        self._watching: asyncio.Task[None] | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] in ALWAYS:
            await self._app(scope, receive, send)
            return
        if len(self._under_way) >= MAX_UNDER_WAY:
            self._metrics.refused("overload")
            why = f"{MAX_UNDER_WAY} requests are under way, and no more are taken; ask again in a moment"
            await refusal(503, why, {"Retry-After": str(RETRY_SECONDS)})(scope, receive, send)
            return
        await self._within_time(scope, receive, send)

    async def _within_time(self, scope: Scope, receive: Receive, send: Send) -> None:
        begun = False

        async def answer(message: Message) -> None:
            nonlocal begun
            begun = True
            await send(message)

        deadline = asyncio.timeout(REQUEST_SECONDS)
        body = _Body(receive, deadline)
        self._under_way.add(body)
        if self._watching is None:
            self._watching = asyncio.create_task(self._watch())
        try:
            async with deadline:
                try:
                    await self._app(scope, body.receive, answer)
                finally:
                    self._under_way.remove(body)
                    body.stop()
        except TimeoutError:
            if body.is_client_gone:
                return
            if begun:
                raise
            self._metrics.refused("time")
            why = f"no answer was found within {REQUEST_SECONDS:.0f} s; send fewer questions at once, or ask again"
            await refusal(503, why, {"Retry-After": str(RETRY_SECONDS)})(scope, receive, send)

    async def _watch(self) -> None:
        """Watch the clients of all requests that take long, as long as there are any requests."""
        before: set[_Body] = set()
        try:
            while self._under_way:
                for body in before & self._under_way:
                    body.watch()
                before = set(self._under_way)
                await asyncio.sleep(WATCH_SECONDS)
        finally:
            self._watching = None


class _Body:
    """Reads a body: as many bytes as are allowed, in the time that it may take."""

    def __init__(self, receive: Receive, deadline: asyncio.Timeout) -> None:
        """`deadline` ends the request; it is brought forward when the client hangs up."""
        self._receive, self._deadline, self._read_bytes, self._is_whole = receive, deadline, 0, False
        self._until = asyncio.get_running_loop().time() + BODY_SECONDS
        self._watch: asyncio.Task[None] | None = None
        self.is_client_gone = False

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

    def watch(self) -> None:
        """From now on, end the request if its client hangs up; but not while the body is being read."""
        if self._is_whole and self._watch is None:
            self._watch = asyncio.create_task(self._end_with_client())

    def stop(self) -> None:
        """Watch no more."""
        if self._watch is not None:
            self._watch.cancel()

    async def _end_with_client(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass
        self.is_client_gone = True
        self._deadline.reschedule(asyncio.get_running_loop().time())
