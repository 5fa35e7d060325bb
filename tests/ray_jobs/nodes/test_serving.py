"""The search service on several nodes, as the manifests of Kubernetes have it: what the loss of a node costs."""

import json
import threading
import time
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import pytest
import yaml

from ray_jobs.serve.haproxy import find_haproxy
from tests.manifests import one
from tests.ray_jobs.nodes.conftest import WORKERS, Night
from tests.ray_jobs.nodes.machines import CPUS, Machine, Machines
from tests.ray_jobs.nodes.waiting import wait_until

pytestmark = [pytest.mark.slow, pytest.mark.cluster, pytest.mark.timeout(1200)]

PORT = 8000
CLIENTS = 6
BEFORE, AFTER_SECONDS = 60, 30.0
"""Requests answered before a node is lost, and seconds of requests after it, in which Ray notices the loss."""


@dataclass(frozen=True)
class Asked:
    """One request, and its outcome."""

    started: float
    ended: float
    outcome: str
    """`200 OK`, or why there is no answer."""


class Load:
    """Clients of one node of the service; each sends one question after another."""

    def __init__(self, machine: Machine) -> None:
        self.asked: list[Asked] = []
        self._url = f"http://{machine.place.address}:{PORT}/v1/search"
        self._over = threading.Event()
        self._opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))

    def __enter__(self) -> "Load":
        self._pool = ThreadPoolExecutor(CLIENTS)
        self._clients = [self._pool.submit(self._ask_on, client) for client in range(CLIENTS)]
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._pool.shutdown()

    def is_answered(self) -> bool:
        """Return whether one question is answered: a node's HAProxy learns of replicas a little after they run."""
        return self._ask("w1") == "200 OK"

    def failed(self) -> list[Asked]:
        return [each for each in self.asked if each.outcome != "200 OK"]

    def _ask_on(self, client: int) -> None:
        number = 0
        while not self._over.is_set():
            number += 1
            started = time.monotonic()
            outcome = self._ask(f"w{client} w{number % 200}")
            self.asked.append(Asked(started, time.monotonic(), outcome))

    def _ask(self, question: str) -> str:
        body = json.dumps({"query": question, "k": 3}).encode()
        request = urllib.request.Request(self._url, body, {"Content-Type": "application/json"})
        try:
            with self._opener.open(request, timeout=120) as answer:
                hits = json.load(answer)["results"][0]["hits"]
                return f"{answer.status} OK" if len(hits) == 3 else f"{len(hits)} hits"
        except urllib.error.HTTPError as error:
            return f"{error}: {error.read()!r}"
        except Exception as error:  # any error that a client may get
            return f"{type(error).__name__}: {error}"


def deploy(machines: Machines, store: str) -> None:
    """Deploy the application of the RayService, as KubeRay does, with a replica on each worker."""
    (application,) = yaml.safe_load(one("RayService")["spec"]["serveConfigV2"])["applications"]
    (deployment,) = application["deployments"]
    del deployment["autoscaling_config"], application["args"]["keys_file"]
    application["args"]["store"] = store
    deployment |= {"num_replicas": WORKERS, "ray_actor_options": {"num_cpus": CPUS}}
    machines.ask("serve/applications/", {"applications": [application]}, "PUT")
    wait_until(lambda: running(machines) == WORKERS, "all replicas run", lambda: str(state_of(machines)))


def state_of(machines: Machines) -> dict[str, Any]:
    """Return what Serve says of the deployment."""
    found: dict[str, Any] = machines.ask("serve/applications/")["applications"].get("search", {})
    return found.get("deployments", {}).get("search", {})


def running(machines: Machines) -> int:
    """Return how many replicas run."""
    return sum(replica["state"] == "RUNNING" for replica in state_of(machines).get("replicas", ()))


def test_a_node_lost_under_load_fails_no_request_but_those_it_held(machines: Machines, night: Night) -> None:
    if find_haproxy() is None:
        pytest.skip("HAProxy is not on this machine")
    night.collection.night()
    deploy(machines, night.collection.store.url)
    try:
        asked, lost, _ = machines.workers.values()
        load = Load(asked)
        wait_until(load.is_answered, "the node answers", lambda: str(state_of(machines)))
        with load:
            wait_until(lambda: len(load.asked) >= BEFORE, "questions are answered", lambda: str(load.failed()[:3]))
            assert load.failed() == [], load.failed()[:3]
            machines.kill(lost)
            lost_at = time.monotonic()
            time.sleep(AFTER_SECONDS)
            machines.add()
            wait_until(lambda: running(machines) == WORKERS, "a new replica runs", lambda: str(state_of(machines)))
            back_at = time.monotonic()
            wait_until(lambda: load.asked[-1].started > back_at, "questions are answered", lambda: str(load.asked[-1:]))
        later = [each for each in load.failed() if each.started > lost_at]
        print(f"{len(load.asked)} requests, {len(load.failed())} failed, {len(later)} of them came after the loss")
        assert later == [], later[:3]
        assert len(load.failed()) <= CLIENTS
    finally:
        machines.ask("serve/applications/", None, "DELETE")
