"""The outermost layer of Ray Serve's HTTP servers: what it corrects in their answers.

While the service starts or stops, its port is open, but there is no application behind it. Ray Serve's proxy then
answers 404 as plain text, which looks like a wrong address. And both the application and Ray Serve add a request id.
"""

import json
from collections.abc import Mapping

from starlette.middleware import Middleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

NOT_READY = "the service is not ready; ask again in a moment"
BODY = json.dumps({"error": NOT_READY})
RETRY_SECONDS = 1
Headers = list[tuple[bytes, bytes]]


def proxy_environment() -> Mapping[str, str]:
    """Return the environment in which Ray Serve's HTTP servers have this layer."""
    return {"RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH": f"{__name__}.middlewares"}


def middlewares() -> list[Middleware]:
    """Return the layer in the form that Ray Serve asks for."""
    return [Middleware(_Outermost)]


class _Outermost:
    """Answers 503 instead of the proxy's own 404, and leaves one request id in each answer.

    A 404 of the application is JSON, and passes.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        is_not_ready = False

        async def answer(message: Message) -> None:
            nonlocal is_not_ready
            if message["type"] == "http.response.start":
                headers = _with_one_id(message["headers"])
                kind = dict(headers).get(b"content-type", b"")
                is_not_ready = message["status"] == 404 and kind.startswith(b"text/plain")
                message = _not_ready() if is_not_ready else {**message, "headers": headers}
            elif message["type"] == "http.response.body" and is_not_ready:
                message = {"type": "http.response.body", "body": BODY.encode()}
            await send(message)

        await self._app(scope, receive, answer)


def _with_one_id(headers: Headers) -> Headers:
    """Return headers with the first request id only: the application's, which its access log has, too."""
    ids = [header for header in headers if header[0] == b"x-request-id"]
    return [header for header in headers if header[0] != b"x-request-id"] + ids[:1]


def _not_ready() -> Message:
    headers = {
        "content-type": "application/json",
        "content-length": str(len(BODY)),
        "retry-after": str(RETRY_SECONDS),
    }
    pairs = [(name.encode(), value.encode()) for name, value in headers.items()]
    return {"type": "http.response.start", "status": 503, "headers": pairs}
