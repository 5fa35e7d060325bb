"""When requests are sent again: counted by a real server that refuses, hangs up or says nothing."""

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import Any

import httpx
import pytest
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.types import Receive, Scope, Send

from dpr.client import Client
from dpr.client.patience import MAX_PAUSE_SECONDS, Patience
from dpr.errors import RefusedError, UnreachableError
from tests.client.test_client import Ask, ask_async, ask_blocking
from tests.ray_jobs.serve_api import served

READY = JSONResponse({"ready": True, "snapshot": 7})


class Scripted:
    """A server that gives certain answers in order, then only good ones, and notes the times of requests."""

    def __init__(self, *answers: Response) -> None:
        self._answers, self.asked_at = list(answers), []  # type: ignore[var-annotated]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            self.asked_at.append(time.monotonic())
            await (self._answers.pop(0) if self._answers else READY)(scope, receive, send)


def busy(status: int = 503, **headers: str) -> Response:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return JSONResponse({"error": "not now"}, status, named)


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dpr.client.patience.FIRST_PAUSE_SECONDS", 0.001)


@pytest.mark.parametrize("ask", [ask_blocking, ask_async])
def test_a_busy_service_is_asked_again_when_it_says(ask: Ask) -> None:
    script = Scripted(busy(Retry_After="1"), busy(429), PlainTextResponse("bad gateway", 502))
    with served(script) as url:
        assert ask(url, None, "ready").snapshot == 7
    first, second, *others = script.asked_at
    assert second - first >= 1.0
    assert len(others) == 2


@pytest.mark.parametrize(
    ("answers", "requests", "sentence"),
    [
        ([busy()] * 9, 4, "answered 503: not now"),
        ([busy(500)], 1, "answered 500: not now"),
        ([busy(Retry_After="31")], 1, "answered 503: not now"),
        ([PlainTextResponse("<h1>Moved\n</h1>", 301, {"Location": "http://127.0.0.1:1"})], 1, "301: <h1>Moved </h1>"),
        ([Response(status_code=413)], 1, "answered 413: "),
    ],
)
def test_what_waiting_does_not_mend_is_raised(answers: Any, requests: int, sentence: str) -> None:
    script = Scripted(*answers)
    with served(script) as url, Client(url) as client:
        with pytest.raises(RefusedError, match=sentence):
            client.ready()
        assert len(script.asked_at) == requests


@contextmanager
def hanging_up(times: int) -> Iterator[tuple[str, list[bytes]]]:
    """Listen on a socket that closes the first `times` connections unanswered, and then sends nothing at all."""
    heard: list[bytes] = []
    kept: list[socket.socket] = []
    with socket.create_server(("127.0.0.1", 0)) as server:

        def work() -> None:
            while True:
                try:
                    connection, _ = server.accept()
                except OSError:
                    return
                heard.append(connection.recv(4096))
                kept.append(connection)
                if len(heard) <= times:
                    connection.close()

        threading.Thread(target=work, daemon=True).start()
        try:
            yield f"http://127.0.0.1:{server.getsockname()[1]}", heard
        finally:
            server.shutdown(socket.SHUT_RDWR)
            for connection in kept:
                connection.close()


@pytest.mark.parametrize("ask", [ask_blocking, ask_async])
def test_a_lost_connection_is_tried_again(ask: Ask) -> None:
    with hanging_up(times=9) as (url, heard):
        with pytest.raises(UnreachableError, match="gave no answer"):
            ask(url, "dpr_key", "ready")
        assert len(heard) == 4
        assert all(b"authorization: bearer dpr_key" in one.lower() for one in heard)


def test_a_service_that_takes_too_long_is_not_asked_again() -> None:
    with hanging_up(times=0) as (url, heard), Client(url, timeout_seconds=0.2) as client:
        with pytest.raises(UnreachableError, match=r"gave no answer \(timed out\)"):
            client.search("a")
        assert len(heard) == 1


def in_seconds(seconds: float) -> str:
    return format_datetime(datetime.now(UTC) + timedelta(seconds=seconds), usegmt=True)


def test_pauses_follow_the_header_in_both_forms() -> None:
    def pause(attempt: int, header: str | None) -> float | None:
        headers = {} if header is None else {"Retry-After": header}
        return Patience(3).pause_seconds(attempt, httpx.Response(503, headers=headers))

    for header, least, most in (("2", 2, 2.5), ("0", 0, 0), (in_seconds(10), 8, 12.5), (in_seconds(-10), 0, 0)):
        for _ in range(20):
            assert least <= (pause(0, header) or 0.0) <= most
    assert pause(0, str(int(MAX_PAUSE_SECONDS) + 1)) is None
    assert pause(0, in_seconds(3600)) is None
    assert pause(3, "1") is None
    for unknown in ("soon", "", None, "-5"):
        assert [0.0005 * 2**n <= (pause(n, unknown) or 0) <= 0.001 * 2**n for n in range(3)] == [True] * 3
