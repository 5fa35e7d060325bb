"""What takes HTTP requests for the search service: Ray Serve's own proxy, or HAProxy, with and without our settings.

    python -m benchmarks.ingress STORE

STORE should answer in a few milliseconds, so that the way of a request is most of its time. Each way is started, asked
and stopped in turn, three rounds of all; the medians of the rounds are printed.
"""

import contextlib
import json
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPConnection
from itertools import count

ROUNDS = 3
CLIENTS = 8
LONE_REQUESTS = 300
LOAD_SECONDS = 6.0
WAYS = {
    "own": "Ray Serve's own proxy",
    "own-throughput": "the same, with RAY_SERVE_THROUGHPUT_OPTIMIZED",
    "haproxy-default": "HAProxy as Ray Serve starts it",
    "haproxy-unpatched": "the same, with RAY_SERVE_THROUGHPUT_OPTIMIZED",
    "haproxy": "HAProxy with all settings of ours and haproxy_child.py",
}


def serve(way: str, store: str, port: int) -> None:
    """Serve a store in one of the ways until stdin ends."""
    import os

    from dpr.recipe_service import ServeConfig
    from ray_jobs.serve import ingress, service

    @contextlib.contextmanager
    def unpatched(binary: str, _place: str, _tls: object) -> Iterator[Mapping[str, str]]:
        yield {"RAY_SERVE_ENABLE_HA_PROXY": "1", "RAY_SERVE_HAPROXY_BINARY_PATH": binary}

    if way in ("own-throughput", "haproxy-unpatched"):
        os.environ["RAY_SERVE_THROUGHPUT_OPTIMIZED"] = "1"
    if way.startswith("own"):
        ingress.find_haproxy = lambda: None
    elif way != "haproxy":
        ingress.haproxy_environment = unpatched
    with service.serve_store(store, ServeConfig(port=port)):
        print("ready", flush=True)
        sys.stdin.read()


def ask(connection: HTTPConnection, number: int) -> None:
    """Ask one question, another each time."""
    body = json.dumps({"query": f"w{number % 200} w{number // 200 % 200}", "k": 5})
    connection.request("POST", "/v1/search", body, {"Content-Type": "application/json"})
    answer = connection.getresponse()
    text = answer.read()
    if answer.status != 200:
        raise RuntimeError(text.decode())


def measure(port: int) -> tuple[float, float]:
    """Return the median milliseconds of a lone client's requests, and the requests a second of eight clients."""
    numbers = count()
    lone = HTTPConnection("127.0.0.1", port)
    times = []
    for _ in range(LONE_REQUESTS):
        started = time.perf_counter()
        ask(lone, next(numbers))
        times.append(time.perf_counter() - started)

    def load(_: int) -> int:
        connection, done, give_up = HTTPConnection("127.0.0.1", port), 0, time.perf_counter() + LOAD_SECONDS
        while time.perf_counter() < give_up:
            ask(connection, next(numbers))
            done += 1
        return done

    with ThreadPoolExecutor(CLIENTS) as threads:
        rate = sum(threads.map(load, range(CLIENTS))) / LOAD_SECONDS
    return 1000 * statistics.median(times), rate


def run(way: str, store: str) -> tuple[float, float]:
    """Start the service in one of the ways, measure it, and stop it."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port = int(listening.getsockname()[1])
    command = [sys.executable, "-m", "benchmarks.ingress", way, store, str(port)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        if process.stdout.readline() != "ready\n":
            raise RuntimeError(f"{way} did not start")
        measure(port)  # warm
        found = measure(port)
        process.communicate("")
    return found


def main(store: str) -> None:
    """Measure all ways and print a table."""
    found: dict[str, list[tuple[float, float]]] = {way: [] for way in WAYS}
    for _ in range(ROUNDS):
        for way, results in found.items():
            results.append(run(way, store))
            print(way, results[-1], file=sys.stderr, flush=True)
    print("| ingress | 1 client, p50 ms | 8 clients, requests/s |\n|---|---|---|")
    for way, results in found.items():
        lone, rate = (statistics.median(values) for values in zip(*results, strict=True))
        print(f"| {WAYS[way]} | {lone:.2f} | {rate:.0f} |")


if __name__ == "__main__":
    if len(sys.argv) == 4:
        serve(sys.argv[1], sys.argv[2], int(sys.argv[3]))
    else:
        main(sys.argv[1])
