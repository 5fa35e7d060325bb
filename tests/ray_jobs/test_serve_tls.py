"""TLS: which files are taken, and what speaks it where HAProxy does not. HAProxy itself is in test_serve.py."""

import asyncio
import re
import socket
import ssl
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
from starlette.responses import PlainTextResponse

from dpr.errors import ServeError
from dpr.recipe_service import ServeConfig
from ray_jobs.serve.haproxy import find_haproxy, haproxy_environment
from ray_jobs.serve.haproxy_child import REQUEST_LOG
from ray_jobs.serve.ingress import Place, own_proxy_options
from ray_jobs.serve.tls import Tls, tls_of
from tests.ray_jobs.certificates import make_certificate
from tests.services.endpoint import free_ports

pytestmark = pytest.mark.without_ray


def config(certificate: Path | None, key: Path | None) -> ServeConfig:
    return ServeConfig(tls_cert=certificate and str(certificate), tls_key=key and str(key))


def test_a_certificate_with_its_key_is_taken(tmp_path: Path) -> None:
    certificate, key = make_certificate(tmp_path, "localhost")
    assert tls_of(config(certificate, key)) == Tls(certificate, key)
    assert tls_of(ServeConfig()) is None


def test_files_that_cannot_be_used_are_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    (tmp_path / "locked").mkdir()
    certificate, key = make_certificate(tmp_path, "localhost")
    _, other_key = make_certificate(tmp_path / "other", "localhost")
    _, locked = make_certificate(tmp_path / "locked", "localhost", password=b"secret")
    text = tmp_path / "text.pem"
    text.write_text("no certificate\n")
    for given, message in (
        (config(certificate, None), r"TLS needs a certificate and its key, and tls_key \(--tls-key\) is not given"),
        (config(None, key), r"tls_cert \(--tls-cert\) is not given; name both, or neither"),
        (config(tmp_path / "none.pem", key), "the TLS certificate .*none.pem cannot be read; name a PEM file"),
        (config(certificate, tmp_path), "the TLS key .* cannot be read"),
        (config(certificate, other_key), r"cannot be used for TLS \(KEY_VALUES_MISMATCH\)"),
        (config(text, key), r"cannot be used for TLS \(.*\); name a certificate in PEM and the key that belongs"),
        (config(certificate, locked), r"\(the key is encrypted\).* which must not be encrypted"),
    ):
        with pytest.raises(ServeError, match=message) as error:
            tls_of(given)
        assert "\n" not in str(error.value)


@pytest.mark.filterwarnings("ignore:Using extra keyword arguments on `Field`:DeprecationWarning")  # Ray Serve's own
def test_serves_own_proxy_speaks_it(tmp_path: Path) -> None:
    """Its HTTP server is started with the options that it is given, without a Ray."""
    from ray.serve._private.http_util import start_asgi_http_server
    from ray.serve.config import HTTPOptions

    certificate, key = make_certificate(tmp_path, "localhost")
    (port,) = free_ports(1)
    options = HTTPOptions(**own_proxy_options(Place("127.0.0.1", port, Tls(certificate, key))))

    async def ask() -> str:
        task, server = await start_asgi_http_server(
            PlainTextResponse("it answers"), options, event_loop=asyncio.get_running_loop()
        )
        trusting = ssl.create_default_context(cafile=certificate)
        async with httpx.AsyncClient(verify=trusting) as client:
            for _ in range(100):
                try:
                    answer = await client.get(f"https://localhost:{port}/")
                    break
                except httpx.ConnectError:
                    await asyncio.sleep(0.05)
        server.should_exit = True
        await task
        return answer.text

    assert asyncio.run(ask()) == "it answers"


@pytest.mark.parametrize("address", ["127.0.0.1", "0.0.0.0", "[::1]", "[::]"])
@pytest.mark.parametrize("speaks_tls", [False, True])
def test_haproxy_listens_where_the_service_shall(tmp_path: Path, address: str, speaks_tls: bool) -> None:
    """Ray Serve's own template, corrected, is accepted by HAProxy, and has the place of the service."""
    from ray.serve._private import haproxy_templates

    if (binary := find_haproxy()) is None:
        pytest.skip("HAProxy does not run here")
    assert re.search(r"^frontend http_frontend\n\s*bind ", haproxy_templates.HAPROXY_CONFIG_TEMPLATE, re.MULTILINE)
    (port,) = free_ports(1)
    place = f"{address}:{port}"
    written = tmp_path / "haproxy.cfg"
    written.write_text("defaults\n    mode http\nfrontend http_frontend\n    bind 127.0.0.1:1\n")
    tls = Tls(*make_certificate(tmp_path, "localhost")) if speaks_tls else None
    with haproxy_environment(binary, place, tls) as environment:
        launcher = environment["RAY_SERVE_HAPROXY_BINARY_PATH"]
        checked = subprocess.run([launcher, "-f", written, "-c"], capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stderr
    (bind,) = re.findall(r"bind (.*)", written.read_text())
    assert bind.split()[0] == place
    assert ("ssl crt" in bind) == speaks_tls


@contextmanager
def haproxy_that_answers(written: Path, template: str, tls: Tls | None = None) -> Iterator[int]:
    """Run HAProxy on a template like Ray Serve's, as the service would have it; gives the port at which it answers."""
    if (binary := find_haproxy()) is None:
        pytest.skip("HAProxy does not run here")
    (port,) = free_ports(1)
    written.write_text(
        f"{template}frontend http_frontend\n    bind 127.0.0.1:1\n"
        "    http-request return status 200 content-type text/plain string answered\n"
    )
    with haproxy_environment(binary, f"127.0.0.1:{port}", tls) as environment:
        launcher = environment["RAY_SERVE_HAPROXY_BINARY_PATH"]
        with subprocess.Popen([launcher, "-db", "-f", written]) as running:
            try:
                yield port
            finally:
                running.terminate()


def test_haproxy_shows_the_certificate(tmp_path: Path) -> None:
    certificate, key = make_certificate(tmp_path, "localhost")
    trusting = ssl.create_default_context(cafile=certificate)
    transport = httpx.HTTPTransport(verify=trusting, retries=8)  # until it listens
    template = "defaults\n    mode http\n    timeout client 5s\n"
    with (
        haproxy_that_answers(tmp_path / "haproxy.cfg", template, Tls(certificate, key)) as port,
        httpx.Client(transport=transport) as client,
    ):
        assert client.get(f"https://localhost:{port}/").text == "answered"
        with pytest.raises(httpx.TransportError):
            httpx.get(f"http://localhost:{port}/")


def test_haproxy_sends_no_addresses_to_the_systems_log(tmp_path: Path) -> None:
    """Ray Serve's template does; the access log of the service leaves out what follows a question mark."""
    from ray.serve._private import haproxy_templates

    assert re.search(REQUEST_LOG, haproxy_templates.HAPROXY_CONFIG_TEMPLATE, re.MULTILINE)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as system_log:
        system_log.bind(("127.0.0.1", 0))
        template = (
            f"global\n    log 127.0.0.1:{system_log.getsockname()[1]} local0 info\n"
            "defaults\n    mode http\n    log global\n    option httplog\n    timeout client 5s\n"
        )
        transport = httpx.HTTPTransport(retries=8)
        with (
            haproxy_that_answers(tmp_path / "haproxy.cfg", template) as port,
            httpx.Client(transport=transport) as client,
        ):
            assert client.get(f"http://127.0.0.1:{port}/v1/passages?q=private").text == "answered"
        system_log.setblocking(False)  # HAProxy has ended, so all that it sent is there
        with pytest.raises(BlockingIOError):
            system_log.recv(65_536)
