"""Around all routes: a request's id, headers for browsers, a line in the access log, and an answer for every bug.

A line is a JSON object. It holds no question, no key, and no part of an address after the question mark.
"""

import json
import logging
import random
import re
import time
from datetime import UTC, datetime
from pathlib import Path

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from dpr.errors import ServeError
from dpr.store.reasons import reason_of
from ray_jobs.serve.prometheus import Metrics
from ray_jobs.serve.refusals import refusal

HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
    "Cache-Control": "no-store",
}
"""A route's own headers replace these. None of them lets pages of other origins in (CORS)."""
CLOSED = 499
"""Status of a request whose client left before there was an answer, as in nginx."""
_REQUEST_ID = re.compile(r"[\w.-]{1,64}", re.ASCII)

_log = logging.getLogger(__name__)


class AccessLog:
    """A file to which each request adds a line. The service's log says when lines cannot be written, and are lost."""

    def __init__(self, path: Path) -> None:
        """Raises ServeError for a file that cannot be written."""
        try:
            self._file = path.open("ab", buffering=0)
        except (OSError, ValueError) as error:
            raise ServeError(
                f"the access log {path} cannot be written: {reason_of(error)}; name another file with --access-log, or "
                "leave it out"
            ) from error
        self._path, self._is_written = path, True

    def write(self, **fields: str | int | float | None) -> None:
        """Add a line."""
        try:
            self._file.write(f"{json.dumps(fields)}\n".encode())
        except OSError as error:  # such as a full disk: the request was answered all the same
            if self._is_written:
                _log.warning("lines of the access log %s are lost: %s", self._path, reason_of(error))
            self._is_written = False
        else:
            self._is_written = True

    def close(self) -> None:
        """Close the file."""
        self._file.close()


class Front:
    """The first handler of every request, and the last of every answer."""

    def __init__(self, app: ASGIApp, metrics: Metrics, access_log: AccessLog | None = None) -> None:
        self._app, self._metrics, self._access_log = app, metrics, access_log

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started, request_id = time.perf_counter(), _request_id(scope)
        scope["state"] = {**scope.get("state", {}), "request_id": request_id}
        status = 0

        async def answer(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                own = {name.lower() for name, _ in message["headers"]}
                added = HEADERS | {"X-Request-Id": request_id}
                more = [(name.lower().encode(), value.encode()) for name, value in added.items()]
                message = {**message, "headers": [*message["headers"], *(one for one in more if one[0] not in own)]}
            await send(message)

        try:
            await self._app(scope, receive, answer)
        except Exception as error:
            _log.exception("request %s failed", request_id)
            if status:  # its answer has begun, so the connection can only be closed
                raise
            message = f"the service failed with {type(error).__name__}; its log has the details"
            await refusal(500, message)(scope, receive, answer)
        finally:
            self._note(scope, request_id, status, time.perf_counter() - started)

    def _note(self, scope: Scope, request_id: str, status: int, seconds: float) -> None:
        route = getattr(scope.get("route"), "path", "other")  # routes, so that the log has few values whatever the path
        self._metrics.request(route, scope["method"], status or CLOSED, seconds)
        if self._access_log is not None:
            client = scope.get("client")
            self._access_log.write(
                time=datetime.now(UTC).isoformat(timespec="milliseconds"),
                request_id=request_id,
                client=client[0] if client else None,
                key=scope["state"].get("key"),
                method=scope["method"],
                path=scope["path"],
                status=status or CLOSED,
                milliseconds=round(seconds * 1000, 3),
            )


def _request_id(scope: Scope) -> str:
    """Return the client's request id, if it is a plain one, else a new one."""
    given: str = dict(scope["headers"]).get(b"x-request-id", b"").decode("latin-1")
    if _REQUEST_ID.fullmatch(given):
        return given
    return f"{random.getrandbits(128):032x}"  # it is no secret, and a uuid takes a call to the system
