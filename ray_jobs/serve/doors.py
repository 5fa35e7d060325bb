"""Checks before the routes: who asks. Without a key, only the pages, the description of the API, and probes answer."""

from starlette.types import ASGIApp, Receive, Scope, Send

from ray_jobs.serve.keys import KeyRing, Role
from ray_jobs.serve.refusals import refusal

OPEN_PATHS = ("/", "/status", "/docs", "/openapi.json", "/v1/ready")
OPEN_FOLDER = "/page/"
"""They contain no data of the store; the pages ask for a key and send it with each question."""


class Doors:
    """Lets in who presents a key, as `Authorization: Bearer KEY` or `X-API-Key: KEY`."""

    def __init__(self, app: ASGIApp, keys: KeyRing) -> None:
        self._app, self._keys = app, keys

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] in OPEN_PATHS or scope["path"].startswith(OPEN_FOLDER):
            await self._app(scope, receive, send)
            return
        presented = _presented(scope)
        key = self._keys.find(presented) if presented else None
        if key is None:
            why = "the key is not known" if presented else "this service answers to keys only"
            answer = refusal(
                401, f"{why}; send one as the header Authorization: Bearer KEY", {"WWW-Authenticate": "Bearer"}
            )
            await answer(scope, receive, send)
            return
        scope["state"] = {**scope.get("state", {}), "key": key.name, "role": key.role}
        await self._app(scope, receive, send)


def role_of(scope: Scope) -> Role:
    """Return what the client may do; everything, if the service has no keys."""
    role: Role = scope.get("state", {}).get("role", "admin")
    return role


def _presented(scope: Scope) -> str:
    headers = dict(scope["headers"])
    scheme, _, token = headers.get(b"authorization", b"").decode("latin-1").partition(" ")
    if scheme.lower() == "bearer":
        return str(token.strip())
    return str(headers.get(b"x-api-key", b"").decode("latin-1").strip())
