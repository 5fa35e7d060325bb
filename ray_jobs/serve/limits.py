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
"""Between two looks at all requests, and the age from which it is watched whether a request's client hangs up: most are
answered sooner."""
ALWAYS = ("/v1/health", "/v1/ready", "/metrics")
"""Probes are answered, however many requests are under way."""


class Limits:
    """Refuses requests beyond the limits.

    A request that runs out of time, or whose client hangs up, is cancelled and leaves the queue. One task looks at all
    requests every `WATCH_SECONDS`: two timers for each request would take as long as to read it.
    """

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self._app, self._metrics = app, metrics
        self._under_way: set[_Request] = set()
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

        request = _Request(receive)
        self._under_way.add(request)
        if self._watching is None:
            self._watching = asyncio.create_task(self._watch())
        try:
            async with request.end:
                try:
                    await self._app(scope, request.receive, answer)
                finally:
                    self._under_way.remove(request)
                    request.stop()
        except TimeoutError:
            if request.is_client_gone:
                return
            if begun:
                raise
            if request.awaits_body:
                why = f"the body did not come within {BODY_SECONDS:.0f} s; send it at once"
                await refusal(408, why)(scope, receive, send)
                return
            self._metrics.refused("time")
            why = f"no answer was found within {REQUEST_SECONDS:.0f} s; send fewer questions at once, or ask again"
            await refusal(503, why, {"Retry-After": str(RETRY_SECONDS)})(scope, receive, send)

    async def _watch(self) -> None:
        """Watch all requests, as long as there are any."""
        try:
            while self._under_way:
                for request in self._under_way:
                    request.watch()
                await asyncio.sleep(WATCH_SECONDS)
        finally:
            self._watching = None


class _Request:
    """Reads a body, as many bytes as are allowed, and ends a request that takes too long or whose client hangs up."""

    def __init__(self, receive: Receive) -> None:
        self._receive, self._began, self._read_bytes = receive, asyncio.get_running_loop().time(), 0
        self._watch: asyncio.Task[None] | None = None
        self.end = asyncio.timeout(None)
        """When it ends: not by itself, before `watch` says so."""
        self.awaits_body = self._is_whole = self.is_client_gone = False

    async def receive(self) -> Message:
        """Return the next part of the body. Raises HTTPException if it is too much."""
        if self._is_whole:  # after the body comes only the end of the connection, which an answer may wait for
            return await self._receive()
        self.awaits_body = True
        message = await self._receive()
        self.awaits_body = False
        self._read_bytes += len(message.get("body", b""))
        self._is_whole = not message.get("more_body", False)
        if self._read_bytes > MAX_BODY_BYTES:
            raise HTTPException(413)
        return message

    def watch(self) -> None:
        """End the request if its time is over; if it takes long, begin to watch whether its client hangs up."""
        now = asyncio.get_running_loop().time()
        if now - self._began >= (BODY_SECONDS if self.awaits_body else REQUEST_SECONDS):
            self._end(now)
        elif now - self._began >= WATCH_SECONDS and self._is_whole and self._watch is None:
            self._watch = asyncio.create_task(self._end_with_client())

    def stop(self) -> None:
        """Watch no more."""
        if self._watch is not None:
            self._watch.cancel()

    async def _end_with_client(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass
        self.is_client_gone = True
        self._end(asyncio.get_running_loop().time())

    def _end(self, now: float) -> None:
        if self.end.when() is None:  # otherwise it is ending already
            self.end.reschedule(now)
