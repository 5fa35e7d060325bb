"""Where the nodes of a cluster run: in namespaces of their own on one bridge, or, without root, side by side.

A node in namespaces has a network, process numbers, a host name and a /dev/shm of its own, as a machine has. Nothing
that it starts outlives its first process, and that one ends with the tests, even where those are killed. So it is
killed as a machine that loses its power.
"""

import json
import os
import secrets
import subprocess
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from tests.process_tree import descendants
from tests.services.endpoint import free_ports

PREFIX = "dprn-"
SHM_BYTES = 200_000_000
"""Size of a node's /dev/shm: an object store larger than that would go to a disk."""
_ENTER = """
mount -t tmpfs -o size={shm} tmpfs /dev/shm
hostname {host}
exec "$@"
"""


PORTS = (
    "node-manager-port",
    "object-manager-port",
    "runtime-env-agent-port",
    "dashboard-agent-grpc-port",
    "dashboard-agent-listen-port",
    "metrics-export-port",
)


class Place(Protocol):
    """Where one node runs."""

    address: str
    """By which the others reach it."""

    def start(self, command: Sequence[str], environment: Mapping[str, str], log: Path) -> "subprocess.Popen[bytes]":
        """Start a process there; `end` ends it, and all that descend from it."""

    def run(self, command: Sequence[str], environment: Mapping[str, str]) -> "subprocess.CompletedProcess[str]":
        """Run a command there, beside the node."""

    def beside(self, command: Sequence[str], environment: Mapping[str, str]) -> "subprocess.Popen[str]":
        """Start a command there, beside the node; its output can be read."""

    def end(self) -> None:
        """Kill all that was started, at once."""

    def options(self) -> list[str]:
        """Return the options of `ray start` that keep nodes of one address apart."""

    def pids(self) -> list[int]:
        """Return the processes that run there, by the numbers that they have for this process."""


class Places(Protocol):
    """Where nodes run."""

    host: str
    """By which nodes reach servers of the tests."""
    can_cut: bool

    def place(self, name: str) -> Place:
        """Return a new place of this name."""

    def cut(self, name: str) -> None:
        """Take a place off the network."""

    def mend(self, name: str) -> None:
        """Bring a place that was cut off back."""


class Namespace:
    """A place with namespaces of its own."""

    def __init__(self, name: str, address: str) -> None:
        self._name, self.address = name, address
        self._process: subprocess.Popen[bytes] | None = None

    def start(self, command: Sequence[str], environment: Mapping[str, str], log: Path) -> "subprocess.Popen[bytes]":
        unshare = ("unshare", "--pid", "--fork", "--kill-child", "--mount", "--mount-proc", "--uts")
        inside = ("sh", "-c", _ENTER.format(shm=SHM_BYTES, host=self._name), "sh", *command)
        prefix = ("ip", "netns", "exec", self._name, "setpriv", "--pdeathsig", "KILL")
        with log.open("ab") as file:
            self._process = subprocess.Popen(
                [*prefix, *unshare, *inside], env=environment, stdout=file, stderr=file, stdin=subprocess.DEVNULL
            )
        return self._process

    def run(self, command: Sequence[str], environment: Mapping[str, str]) -> "subprocess.CompletedProcess[str]":
        inside = [*self._enter(), *command]
        return subprocess.run(inside, env=environment, capture_output=True, text=True, check=False)

    def beside(self, command: Sequence[str], environment: Mapping[str, str]) -> "subprocess.Popen[str]":
        return _with_output([*self._enter(), *command], environment)

    def _enter(self) -> list[str]:
        """Return the command that runs another one inside."""
        assert self._process is not None
        (first,) = (pid for pid in descendants(self._process.pid) if _number_inside(pid) == 1)
        return ["nsenter", "--target", str(first), "--net", "--pid", "--mount", "--uts"]

    def end(self) -> None:
        if self._process is not None:
            inside = self.pids()
            self._process.kill()
            self._process.wait()
            while any(_runs(pid) for pid in inside):  # the kernel ends them a little later
                time.sleep(0.001)

    def options(self) -> list[str]:
        return []

    def pids(self) -> list[int]:
        return descendants(self._process.pid) if self._process is not None else []


class Beside:
    """A place that shares this machine's address with all others."""

    address = "127.0.0.1"

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None

    def start(self, command: Sequence[str], environment: Mapping[str, str], log: Path) -> "subprocess.Popen[bytes]":
        with log.open("ab") as file:
            self._process = subprocess.Popen(
                ["setpriv", "--pdeathsig", "KILL", *command], env=environment, stdout=file, stderr=file
            )
        return self._process

    def run(self, command: Sequence[str], environment: Mapping[str, str]) -> "subprocess.CompletedProcess[str]":
        return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)

    def beside(self, command: Sequence[str], environment: Mapping[str, str]) -> "subprocess.Popen[str]":
        return _with_output(command, environment)

    def end(self) -> None:
        if self._process is not None:
            for pid in [self._process.pid, *self.pids()]:
                with suppress(ProcessLookupError):
                    os.kill(pid, 9)
            self._process.wait()

    def options(self) -> list[str]:
        return [*ports(free_ports(len(PORTS))), "--min-worker-port=0", "--max-worker-port=0"]

    def pids(self) -> list[int]:
        return descendants(self._process.pid) if self._process is not None else []


@dataclass
class Bridge:
    """Places on a bridge of this machine."""

    name: str
    subnet: str
    can_cut = True
    count: int = 0

    @property
    def host(self) -> str:
        return f"{self.subnet}.1"

    def place(self, name: str) -> Namespace:
        self.count += 1
        address, full = f"{self.subnet}.{10 + self.count}", f"{self.name}-{name}"
        _ip("netns", "add", full)
        _ip("link", "add", self._link(name), "type", "veth", "peer", "name", "eth0", "netns", full)
        _ip("link", "set", self._link(name), "master", self.name, "up")
        for command in (f"addr add {address}/24 dev eth0", "link set eth0 up", "link set lo up"):
            _ip("-n", full, *command.split())
        return Namespace(full, address)

    def cut(self, name: str) -> None:
        _ip("link", "set", self._link(name), "nomaster")

    def mend(self, name: str) -> None:
        _ip("link", "set", self._link(name), "master", self.name)

    def _link(self, name: str) -> str:
        return f"{self.name}{name}"


class SideBySide:
    """Places that share the address of loopback."""

    host = "127.0.0.1"
    can_cut = False

    def place(self, name: str) -> Beside:  # noqa: ARG002
        return Beside()

    def cut(self, name: str) -> None:
        raise NotImplementedError(name)

    mend = cut


def ports(numbers: Iterable[int]) -> list[str]:
    """Return the options of `ray start` that give its services these ports."""
    return [f"--{name}={number}" for name, number in zip(PORTS, numbers, strict=True)]


@contextmanager
def places() -> Iterator[Places]:
    """Give where nodes run: on a bridge where this user may make one; it goes away with the block."""
    # addresses that are kept for tests of networks
    made = Bridge(f"{PREFIX}{os.getpid():x}", f"198.18.{secrets.randbelow(256)}")
    try:
        _remove_left_over()
        _ip("link", "add", made.name, "type", "bridge")
    except (OSError, subprocess.CalledProcessError):
        yield SideBySide()
        return
    try:
        _ip("addr", "add", f"{made.host}/24", "dev", made.name)
        _ip("link", "set", made.name, "up")
        yield made
    finally:
        _remove(made.name)


def _remove_left_over() -> None:
    """Remove networks of tests that were killed. The name of each has the number of the process that made it."""
    bridges = json.loads(_ip("-json", "link", "show", "type", "bridge") or "[]")
    for name in (bridge["ifname"] for bridge in bridges if bridge["ifname"].startswith(PREFIX)):
        if not Path(f"/proc/{int(name.removeprefix(PREFIX), 16)}").exists():
            _remove(name)


def _remove(bridge: str) -> None:
    for line in _ip("netns", "list").splitlines():
        if line.startswith(f"{bridge}-"):
            _ip("netns", "del", line.split()[0])
    _ip("link", "del", bridge)


def _ip(*arguments: str) -> str:
    return subprocess.run(("ip", *arguments), check=True, capture_output=True, text=True).stdout


def _with_output(command: Sequence[str], environment: Mapping[str, str]) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, text=True
    )


def _runs(pid: int) -> bool:
    """Tell whether a process has not ended, whether or not somebody has asked for its exit code."""
    try:
        return Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def _number_inside(pid: int) -> int | None:
    """Return the number that a process has in its own namespace."""
    try:
        status = Path(f"/proc/{pid}/status").read_text(encoding="utf-8")
    except OSError:
        return None
    return int(next(line for line in status.splitlines() if line.startswith("NSpid:")).split()[-1])
