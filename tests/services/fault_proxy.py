"""An HTTP proxy in front of an S3 server that fails as networks and busy servers do."""

import http.client
import threading
from collections.abc import Callable
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Literal, Self
from urllib.parse import urlsplit

from tests.services.endpoint import S3Endpoint

Fault = Literal["pass", "slow down", "stall", "refuse", "cut", "lose answer", "trickle", "web page", "internal error"]
"""What happens to a request:

pass            nothing: the fault planned after this one meets a later request
slow down       it is answered 503 SlowDown and goes no further
internal error  it is answered 500 InternalError and goes no further
web page        it is answered 200 with HTML and goes no further
stall           it is never answered and goes no further
refuse          its connection is closed and it goes no further
cut             the server gets it, and its answer breaks off halfway through the body
trickle         the server gets it, and its answer comes one byte at a time
lose answer     the server gets it, and the connection is closed instead of an answer
"""

_SLOW_DOWN = (
    b"<?xml version='1.0'?><Error><Code>SlowDown</Code><Message>Please reduce your request rate.</Message></Error>"
)
_INTERNAL = b"<?xml version='1.0'?><Error><Code>InternalError</Code><Message>We are sorry.</Message></Error>"
_WEB_PAGE = b"<!doctype html><p>Welcome to a router's front page.<br>"
_SECONDS_PER_TRICKLED_BYTE = 0.05


class FaultProxy:
    """`endpoint` is where clients connect; `fail` says what becomes of their next requests."""

    def __init__(self, upstream: S3Endpoint) -> None:
        self.requests: list[tuple[str, str]] = []
        """Method and path of every request that came, in order."""
        self.stopping = threading.Event()
        self.upstream = urlsplit(upstream.url)
        self._faults: list[tuple[str, Fault]] = []
        self._lock = threading.Lock()
        self._server = _Server(self)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,))
        self.endpoint = replace(upstream, url=f"http://127.0.0.1:{self._server.server_port}")

    def fail(self, method: str, fault: Fault, times: int = 1) -> None:
        """Let the next `times` requests by this HTTP method meet `fault`, after those that were planned before."""
        with self._lock:
            self._faults += [(method, fault)] * times

    def mend(self) -> None:
        """Forget the faults that were planned."""
        with self._lock:
            self._faults.clear()

    def next_fault(self, method: str, path: str) -> Fault | None:
        """Note the request and take the fault planned for it."""
        with self._lock:
            self.requests.append((method, path))
            for position, (planned, fault) in enumerate(self._faults):
                if planned == method:
                    del self._faults[position]
                    return fault
        return None

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stopping.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


class _Server(ThreadingHTTPServer):
    def __init__(self, proxy: FaultProxy) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.proxy = proxy

    def handle_error(self, request: object, client_address: object) -> None:
        pass  # clients hang up on answers that come too late


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        pass

    def _handle(self) -> None:
        proxy = self.server.proxy
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        fault = proxy.next_fault(self.command, self.path)
        if fault in (None, "pass"):
            self._forward(body, self.wfile.write)
        elif fault == "slow down":
            self._answer(503, _SLOW_DOWN)
        elif fault == "internal error":
            self._answer(500, _INTERNAL)
        elif fault == "web page":
            self._answer(200, _WEB_PAGE)
        elif fault == "trickle":
            self._forward(body, self._trickle)
        else:
            self.close_connection = True
            if fault == "stall":
                proxy.stopping.wait()
            elif fault == "cut":
                self._forward(body, lambda data: self.wfile.write(data[: len(data) // 2]))
            elif fault == "lose answer":
                self._forward(body, None)

    do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = _handle

    def _answer(self, status: int, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _forward(self, body: bytes, write: Callable[[bytes], object] | None) -> None:
        upstream = self.server.proxy.upstream
        connection = http.client.HTTPConnection(upstream.hostname or "", upstream.port, timeout=30)
        try:
            connection.request(self.command, self.path, body, dict(self.headers.items()))
            response = connection.getresponse()
            data = response.read()
        finally:
            connection.close()
        if write is None:
            return
        self.send_response_only(response.status)
        for name, value in response.getheaders():
            if name.lower() not in ("transfer-encoding", "connection", "content-length"):
                self.send_header(name, value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        write(data)

    def _trickle(self, data: bytes) -> None:
        for position in range(len(data)):
            if self.server.proxy.stopping.wait(_SECONDS_PER_TRICKLED_BYTE):
                return
            self.wfile.write(data[position : position + 1])
            self.wfile.flush()
