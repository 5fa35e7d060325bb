"""The pages at / to search in and at /status to look at: files that load nothing from anywhere else."""

from importlib.resources import files

from fastapi import FastAPI, Response

_FILES = {
    "/": ("index.html", "text/html; charset=utf-8"),
    "/status": ("status.html", "text/html; charset=utf-8"),
    "/page/page.css": ("page.css", "text/css; charset=utf-8"),
    "/page/status.css": ("status.css", "text/css; charset=utf-8"),
    "/page/ask.js": ("ask.js", "text/javascript; charset=utf-8"),
    "/page/page.js": ("page.js", "text/javascript; charset=utf-8"),
    "/page/status.js": ("status.js", "text/javascript; charset=utf-8"),
    "/page/plots.js": ("plots.js", "text/javascript; charset=utf-8"),
}
"""Path → name and type of a file of the folder `page`."""
_DOOR = b"  <!-- door.html -->\n"
"""Stands in a page for the form that asks for a key."""
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src data:; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'none'"
)


def add_pages(app: FastAPI) -> None:
    """Add the pages and what they load."""
    for path, (name, media_type) in _FILES.items():
        _add_file(app, path, _read(name).replace(_DOOR, _read("door.html")), media_type)


def _read(name: str) -> bytes:
    return files("ray_jobs.serve").joinpath("page", name).read_bytes()


def _add_file(app: FastAPI, path: str, content: bytes, media_type: str) -> None:
    @app.get(path, include_in_schema=False)
    async def file() -> Response:
        headers = {"Content-Security-Policy": _POLICY, "Cache-Control": "no-cache", "Content-Type": media_type}
        return Response(content, headers=headers)
