"""The way into the service: HAProxy if it runs here, else Ray Serve's own proxy; and whether it answers."""

import os
import socket
import ssl
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http import HTTPStatus
from http.client import HTTPConnection, HTTPException, HTTPSConnection
from urllib.parse import urlsplit

from dpr.errors import ServeError
from ray_jobs.output import console
from ray_jobs.serve.haproxy import REPLICAS_ADDRESS, find_haproxy, haproxy_environment
from ray_jobs.serve.listening import Place, bracketed
from ray_jobs.serve.proxy_layer import proxy_environment

READY_SECONDS, CONNECT_SECONDS = 60.0, 5.0
HttpOptions = Mapping[str, str | int]
"""Fields of Ray Serve's own HTTPOptions."""


@contextmanager
def ingress(place: Place) -> Iterator[HttpOptions]:
    """Let HAProxy take the requests if it can, else Ray Serve's own proxy, and print that.

    Gives the address for the Ray Serve that starts within the block.
    """
    binary = find_haproxy()
    with environment(proxy_environment()):
        if binary is not None:
            bind = f"{bracketed(place.address)}:{place.port}"
            with haproxy_environment(binary, bind, place.tls) as values, environment(values):
                yield {"host": REPLICAS_ADDRESS, "port": place.port}
            return
        slower = "HAProxy is not on this machine: requests go through Ray Serve's own, slower proxy"
        console(stderr=True).print(slower, highlight=False)
        yield own_proxy_options(place)


def own_proxy_options(place: Place) -> HttpOptions:
    """Return the HTTP options of Ray Serve's own proxy."""
    options: dict[str, str | int] = {"host": place.address, "port": place.port}
    if place.tls is not None:
        options |= {"ssl_certfile": str(place.tls.certificate), "ssl_keyfile": str(place.tls.key)}
    return options


@contextmanager
def environment(values: Mapping[str, str]) -> Iterator[None]:
    """Have these environment variables within the block."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def wait_until_ready(place: Place) -> None:
    """Return as soon as the service answers. Raises ServeError if it does not in READY_SECONDS."""
    give_up = time.monotonic() + READY_SECONDS
    while not _answers(place):
        if time.monotonic() > give_up:
            raise ServeError(
                f"port {place.port} of {place.reached_at} gave no answer to /v1/ready for {READY_SECONDS:.0f} s; try "
                "again"
            )
        time.sleep(0.1)


def is_open(url: str) -> bool:
    """Return whether something listens at a URL of the service."""
    address = urlsplit(url)
    try:
        socket.create_connection((address.hostname or "", address.port or 0), CONNECT_SECONDS).close()
    except TimeoutError:  # it is too busy to take one more
        return True
    except OSError:
        return False
    return True


def _answers(place: Place) -> bool:
    connection = _connection(place)
    try:
        connection.request("GET", "/v1/ready")
        return connection.getresponse().status == HTTPStatus.OK
    except (OSError, HTTPException):
        return False
    finally:
        connection.close()


def _connection(place: Place) -> HTTPConnection:
    if place.tls is None:
        return HTTPConnection(place.reached_at, place.port, timeout=READY_SECONDS)
    # nothing secret is sent, and the certificate names another host than this address
    trusting = ssl.create_default_context()
    trusting.check_hostname, trusting.verify_mode = False, ssl.CERT_NONE
    return HTTPSConnection(place.reached_at, place.port, timeout=READY_SECONDS, context=trusting)
