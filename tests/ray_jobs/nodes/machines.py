"""A Ray cluster of several nodes, each a machine to Ray, and the faults of such machines."""

import json
import os
import secrets
import subprocess
import sys
import time
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.manifests import container_of, one
from tests.ray_jobs.nodes.jobs_api import Job
from tests.ray_jobs.nodes.network import Place, Places
from tests.ray_jobs.nodes.waiting import WAIT_SECONDS, wait_until
from tests.services.endpoint import S3Endpoint, free_ports

STORE_BYTES = 100_000_000
"""The object store of a node."""
CPUS = 2
ROOT = Path(__file__).parents[3]
PROGRAMS = Path(sys.executable).parent


@dataclass
class Machine:
    """One node of the cluster."""

    name: str
    place: Place
    folder: Path
    command: list[str]
    environment: Mapping[str, str]
    process: "subprocess.Popen[bytes] | None" = None
    node_id: str = ""

    def keep_up(self) -> None:
        """Start the node if it does not run, as systemd does with `Restart=always`."""
        if self.process is None or self.process.poll() is not None:
            self.node_id = ""
            self.process = self.place.start(self.command, self.environment, self.folder.with_suffix(".log"))

    @property
    def log(self) -> str:
        return self.folder.with_suffix(".log").read_text(encoding="utf-8", errors="replace")


@dataclass
class Machines:
    """A head that does no work, and workers."""

    places: Places
    home: Path
    """A short path: sockets have names of about a hundred bytes at most."""
    endpoint: S3Endpoint
    token: str = field(default_factory=lambda: secrets.token_hex(32))
    workers: dict[str, Machine] = field(default_factory=dict)
    started: int = 0

    def __post_init__(self) -> None:
        self.gcs, self.dashboard = 6379, 8265
        if not self.places.can_cut:
            self.gcs, self.dashboard = free_ports(2)
        self.head = self._start(
            "--head",
            f"--port={self.gcs}",
            "--num-cpus=0",  # as the manifests of Kubernetes have it
            "--dashboard-host={address}",
            f"--dashboard-port={self.dashboard}",
            *(["--ray-client-server-port=0"] if not self.places.can_cut else []),
        )
        wait_until(self._answers, "the head answers", lambda: self.head.log)

    @property
    def address(self) -> str:
        """The address by which nodes and drivers join."""
        return f"{self.head.place.address}:{self.gcs}"

    def add(self, count: int = 1, **settings: str) -> list[Machine]:
        """Start workers, and return them once all are there."""
        made = []
        for _ in range(count):  # one after another: some processes of Ray get only 15 seconds to start
            machine = self._start(f"--address={self.address}", f"--num-cpus={CPUS}", settings=settings)
            self.workers[machine.name] = machine
            self.wait_for(machine)
            made.append(machine)
        return made

    def wait_for(self, machine: Machine) -> None:
        """Return when a worker is part of the cluster; it is started again if it ends before."""
        wait_until(lambda: self._find(machine), "the worker is there", lambda: machine.log[-2000:])

    def wait_for_return(self, machine: Machine) -> None:
        """Return when a worker that Ray gave up is part of the cluster again, as another node of Ray."""
        old = machine.node_id
        wait_until(lambda: old not in self.alive(), "Ray gives the worker up", lambda: machine.log[-2000:])
        wait_until(lambda: self._ended(machine), "the old node ends", lambda: machine.log[-2000:])
        self.wait_for(machine)

    def kill(self, machine: Machine) -> None:
        """End a machine as a loss of power does."""
        machine.place.end()
        self.workers.pop(machine.name, None)

    def alive(self) -> set[str]:
        """Return the ids of the nodes that are not dead."""
        return {node["node_id"] for node in self._nodes()}

    def machine_of(self, node_id: str) -> Machine:
        """Return the worker with a node id."""
        (found,) = (machine for machine in self.workers.values() if machine.node_id == node_id)
        return found

    def environment(self, machine: str, **settings: str) -> dict[str, str]:
        """Return the environment of a machine's processes."""
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "AWS_", "DPR_"))}
        own = {
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": self.token,
            "RAY_USAGE_STATS_ENABLED": "0",
            "PATH": f"{PROGRAMS}:{os.environ['PATH']}",
            "PYTHONPATH": str(ROOT),  # workers import what tests define, and nothing from the current folder
            "DPR_CACHE": str(self.home / f"cache-{machine}"),
            "OMP_NUM_THREADS": "1",
        } | self._haproxy(machine)
        return kept | self.endpoint.environment() | own | settings

    def _haproxy(self, machine: str) -> dict[str, str]:
        """Return the settings of the service's pods, and folders for HAProxy: each machine has files of its own."""
        folder = self.home / f"haproxy-{machine}"
        head = one("RayService")["spec"]["rayClusterConfig"]["headGroupSpec"]
        pods = {variable["name"]: variable["value"] for variable in container_of(head)["env"]}
        return pods | {
            "RAY_SERVE_HAPROXY_CONFIG_FILE_LOC": str(folder / "haproxy.cfg"),
            "RAY_SERVE_HAPROXY_SOCKET_PATH": str(folder / "admin.sock"),
            "RAY_SERVE_HAPROXY_SERVER_STATE_BASE": str(folder),
            "RAY_SERVE_HAPROXY_SERVER_STATE_FILE": str(folder / "state"),
            "RAY_SERVE_HAPROXY_METRICS_SOCKET_PATH": str(folder / "metrics.sock"),
        }

    def submit(self, *command: str, cpus: int = 1, **settings: str) -> "Job":
        """Submit a command as the nightly CronJob does: by the API of Ray Jobs, with a CPU for the driver."""
        wanted = {
            "entrypoint": " ".join(command),
            "entrypoint_num_cpus": cpus,
            "runtime_env": {"env_vars": settings} if settings else {},
        }
        return Job(self, self.ask("jobs/", wanted)["submission_id"])

    def ask(self, path: str, body: object = None, method: str | None = None) -> Any:
        """Send a request to the API of the dashboard, and return its answer; None if that is empty.

        One that only reads is sent again if it fails, as it does where the dashboard has no time.
        """
        until = time.monotonic() + WAIT_SECONDS
        while True:
            try:
                return self.send(path, body, method)
            except OSError:
                if body is not None or method is not None or time.monotonic() > until:
                    raise
            time.sleep(1.0)

    def send(self, path: str, body: object = None, method: str | None = None, seconds: float = WAIT_SECONDS) -> Any:
        """Send a request once, as `ask` does; raises OSError if it fails."""
        request = urllib.request.Request(
            f"http://{self.head.place.address}:{self.dashboard}/api/{path}",
            None if body is None else json.dumps(body).encode(),
            {"Authorization": f"Bearer {self.token}", "Content-Type": "application/json"},
            method=method,
        )
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with opener.open(request, timeout=seconds) as answer:
            text = answer.read()
        return json.loads(text) if text.strip() else None

    def job_of(self, text: str) -> Job:
        """Return the job whose command has this text, once it runs."""
        found: list[Job] = []

        def look() -> bool:
            running = [job for job in self.ask("jobs/") if job["status"] == "RUNNING" and text in job["entrypoint"]]
            found[:] = [Job(self, job["submission_id"]) for job in running]
            return bool(found)

        wait_until(look, f"a job with {text} runs", lambda: str(self.ask("jobs/")))
        return found[0]

    def ray(self, *arguments: str) -> str:
        """Run a command of Ray on the head."""
        done = self.head.place.run(["ray", *arguments], self.environment(self.head.name))
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def end(self) -> None:
        """Kill all machines."""
        for machine in [*self.workers.values(), self.head]:
            machine.place.end()

    def _start(self, *arguments: str, settings: Mapping[str, str] | None = None) -> Machine:
        name = str(self.started)
        self.started += 1
        place, folder = self.places.place(name), self.home / name
        command = [
            *("ray", "start", "--block", f"--node-ip-address={place.address}", f"--temp-dir={folder}"),
            *(f"--object-store-memory={STORE_BYTES}", "--log-color=false"),
            *(argument.format(address=place.address) for argument in arguments),
            *place.options(),
        ]
        machine = Machine(name, place, folder, command, self.environment(name, **(settings or {})))
        machine.keep_up()
        return machine

    def _ended(self, machine: Machine) -> bool:
        return machine.process is not None and machine.process.poll() is not None

    def _answers(self) -> bool:
        self.head.keep_up()
        try:
            nodes = self.send("v0/nodes")["data"]["result"]["result"]
        except OSError:
            return False
        return bool(nodes)

    def _nodes(self) -> list[dict[str, Any]]:
        found = self.ask("v0/nodes?detail=1")["data"]["result"]["result"]
        return [node for node in found if node["state"] == "ALIVE"]

    def _find(self, machine: Machine) -> bool:
        """Note the node id of a machine; return whether it has one."""
        machine.keep_up()
        taken = {other.node_id for other in self.workers.values()}
        for node in self._nodes():
            if machine.node_id == "" and node["node_ip"] == machine.place.address and not node["is_head_node"]:
                machine.node_id = node["node_id"] if node["node_id"] not in taken else ""
        return machine.node_id != ""
