"""The answer while the service starts or stops: its port is open, but there is no application behind it.

Ray Serve's proxy then answers 404 as plain text, which looks like a wrong address.
"""

import json
from collections.abc import Mapping

from starlette.middleware import Middleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

BODY = json.dumps({"error": "the service is not ready; ask again in a moment"})
RETRY_SECONDS = 1


def proxy_environment() -> Mapping[str, str]:
    """Return the environment in which Ray Serve's proxy answers so."""
    return {"RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH": f"{__name__}.middlewares"}


def middlewares() -> list[Middleware]:
    """Return the middleware for the answers of Ray Serve's proxy."""
    return [Middleware(_NotReady)]


class _NotReady:
    """Answers 503 instead of the proxy's own 404. Those of the application are JSON, and pass."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        is_ours = False

        async def answer(message: Message) -> None:
            nonlocal is_ours
            if message["type"] == "http.response.start" and message["status"] == 404:
                is_ours = dict(message["headers"]).get(b"content-type", b"").startswith(b"text/plain")
                if is_ours:
                    headers = {
                        "content-type": "application/json",
                        "content-length": str(len(BODY)),
                        "retry-after": str(RETRY_SECONDS),
                    }
                    pairs = [(name.encode(), value.encode()) for name, value in headers.items()]
                    message = {**message, "status": 503, "headers": pairs}
            elif message["type"] == "http.response.body" and is_ours:
                message = {"type": "http.response.body", "body": BODY.encode()}
            await send(message)

        await self._app(scope, receive, answer)
