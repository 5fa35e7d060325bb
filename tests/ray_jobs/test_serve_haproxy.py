"""What HAProxy says by itself, and how long it waits for clients that send nothing; the service is in test_serve.py."""

import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import httpx
import pytest

from ray_jobs.serve import haproxy
from ray_jobs.serve.haproxy import find_haproxy, haproxy_environment
from ray_jobs.serve.tls import Tls
from tests.ray_jobs.certificates import make_certificate
from tests.services.endpoint import free_ports

pytestmark = [
    pytest.mark.without_ray,
    pytest.mark.skipif(find_haproxy() is None, reason="HAProxy does not run here"),
]
PATIENCE_SECONDS = 30.0
"""Longer than any wait here; only a fault reaches it."""


class _Replica(BaseHTTPRequestHandler):
    """Answers /slow later than HAProxy waits for a silent client, and ends the connection of /lost."""

    def do_GET(self) -> None:
        if self.path == "/lost":
            self.connection.shutdown(socket.SHUT_RDWR)
            return
        time.sleep(3 if self.path == "/slow" else 0)
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b"answered")

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture(scope="module", params=["http", "tls"])
def url(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """HAProxy before one replica, as Ray Serve's template has it, with time limits of one and two seconds."""
    folder = tmp_path_factory.mktemp("haproxy")
    binary = find_haproxy()
    assert binary is not None
    (port,) = free_ports(1)
    replica = ThreadingHTTPServer(("127.0.0.1", 0), _Replica)
    threading.Thread(target=replica.serve_forever, daemon=True).start()
    (folder / "500.http").write_text("HTTP/1.1 500 Internal Server Error\r\n\r\n")
    written = folder / "haproxy.cfg"
    written.write_text(
        "defaults\n    mode http\n    timeout client 3600s\n    timeout connect 5s\n    option abortonclose\n"
        + "".join(f"    errorfile {status} {folder}/500.http\n" for status in (502, 503, 504))
        + "frontend http_frontend\n    bind 127.0.0.1:1\n    default_backend search\n"
        f"backend search\n    server replica 127.0.0.1:{replica.server_port}\n"
    )
    tls = Tls(*make_certificate(folder, "localhost")) if request.param == "tls" else None
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(haproxy, "HEADER_SECONDS", 1)
        patch.setattr(haproxy, "SILENT_SECONDS", 2)
        with haproxy_environment(binary, f"127.0.0.1:{port}", tls) as environment:
            command = [environment["RAY_SERVE_HAPROXY_BINARY_PATH"], "-db", "-f", written]
            with subprocess.Popen(command, stderr=subprocess.DEVNULL) as running:
                try:
                    yield f"{'http' if tls is None else 'https'}://localhost:{port}"
                finally:
                    running.terminate()
    replica.shutdown()
    replica.server_close()


@pytest.fixture
def client(url: str) -> Iterator[httpx.Client]:
    transport = httpx.HTTPTransport(verify=False, retries=8)  # until it listens
    with httpx.Client(transport=transport, base_url=url, timeout=PATIENCE_SECONDS) as made:
        assert made.get("/").text == "answered"
        yield made


def connected(client: httpx.Client) -> socket.socket:
    """Return a plain connection."""
    return socket.create_connection(("127.0.0.1", client.base_url.port or 0), PATIENCE_SECONDS)


def status_of(client: httpx.Client, content: bytes) -> int:
    """Send these bytes and nothing more; return the status of what comes back before the connection ends."""
    opened = connected(client)
    if client.base_url.scheme == "https":
        trusting = ssl.create_default_context()
        trusting.check_hostname, trusting.verify_mode = False, ssl.CERT_NONE
        opened = trusting.wrap_socket(opened)
    with opened:
        opened.sendall(content)
        came = b"".join(iter(lambda: opened.recv(65536), b""))
    return int(came.split()[1])


def test_headers_that_do_not_come_are_refused(client: httpx.Client) -> None:
    """Slow-loris: connections that send a header now and then, or nothing, until no other gets in."""
    assert status_of(client, b"GET / HTTP/1.1\r\nHost: a\r\n") == 408


def test_a_connection_that_says_nothing_is_closed(client: httpx.Client) -> None:
    with connected(client) as opened:
        assert opened.recv(1) == b""


def test_an_answer_that_takes_longer_comes(client: httpx.Client) -> None:
    assert client.get("/slow").text == "answered"


def test_a_request_whose_replica_ended_may_be_sent_again(client: httpx.Client) -> None:
    answer = client.get("/lost")
    assert (answer.status_code, answer.headers["retry-after"]) == (502, "1")
    assert answer.json() == {"error": "the process that had the request ended before it answered; ask again"}
