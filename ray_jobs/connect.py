"""Connect to Ray: to the cluster that `RAY_ADDRESS` names, or to a Ray of our own that only this machine reaches."""

import logging
import os
import re
import secrets
import socket
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import ray
from ray._common.network_utils import parse_address
from ray._common.utils import get_default_ray_temp_dir
from ray._private import node, ray_constants, services, worker
from ray.job_config import JobConfig

from dpr.errors import ClusterError
from dpr.stages.segment_rows import MIN_CORES
from dpr.store.temporary import temporary_root
from ray_jobs.ray_output import quiet_ray
from ray_jobs.signals import signals_restored

ANSWER_SECONDS = 10.0
START_ATTEMPTS = 3
_TOO_SLOW = "timed out during startup"
"""Part of Ray's message when its processes did not start in time; some of them have only 15 seconds."""
MAX_FOLDER_BYTES = 40
"""Longest path of the folder for Ray's files: Ray adds 65 bytes, and the path of a socket may have 107."""
STORE_BYTES = 10**9
"""Room for values that Ray's processes share through a disk: units and results are small."""
_PASSED_ON = ("DPR_CACHE_GB",)
_VERSIONS = re.compile(r"Ray: (\S+)\s+Python: (\S+)")
"""In Ray's message about versions that differ: those of the cluster, then those here."""


class _Job(JobConfig):  # type: ignore[misc]  # Ray has no types
    """Ray's configuration of a job whose workers import from where packages are installed and from PYTHONPATH alone."""

    def _serialize(self) -> bytes:
        """Leave out this process's folder and that of its script, which Ray has just added."""
        self._py_driver_sys_path.clear()
        serialized: bytes = super()._serialize()
        return serialized


@contextmanager
def connected(cpus: int | None = None, gpus: int | None = None) -> Iterator[None]:
    """Connect this process within the block: to the cluster that RAY_ADDRESS names, else to a Ray of its own.

    A Ray of its own has `cpus` CPUs (at least MIN_CORES) and `gpus` GPUs (None: all that this machine has), listens on
    loopback only, has no dashboard, and stops with the block. Raises ClusterError if a cluster cannot be joined.
    """
    if ray.is_initialized():
        yield
        return
    with quiet_ray():
        with signals_restored():  # at SIGTERM, Ray would end this process at once, and nothing would be released
            if address := named_cluster():
                _join(address)
            else:
                _start(cpus, gpus)
        try:
            yield
        finally:
            ray.shutdown()


def named_cluster() -> str | None:
    """Return the address of the cluster that this process joins; None: it starts a Ray of its own."""
    address = os.environ.get("RAY_ADDRESS")
    return None if address in ("", "local") else address


def lost_processes() -> Sequence[str]:
    """Return the names of the processes of a Ray of our own that ended without being asked; none for a cluster."""
    started = worker._global_node
    return [] if started is None else [name for name, _ in started.dead_processes()]


def _join(address: str) -> None:
    try:
        _knock(address)
        ray.init(log_to_driver=False, logging_level=logging.ERROR, runtime_env=_environment(), job_config=_Job())
    except (ray.exceptions.RayError, OSError, RuntimeError, ValueError) as error:
        if versions := _VERSIONS.findall(str(error)):
            (ray_there, python_there), (ray_here, python_here) = versions
            raise ClusterError(
                f"the Ray cluster {address} that RAY_ADDRESS names has Ray {ray_there} and Python {python_there}, and "
                f"this machine Ray {ray_here} and Python {python_here}; install the same versions everywhere"
            ) from error
        raise ClusterError(
            f"the Ray cluster {address} that RAY_ADDRESS names cannot be joined: {_first_line(error)}; correct or "
            "unset RAY_ADDRESS, start the cluster, or give its token: RAY_AUTH_MODE=token with RAY_AUTH_TOKEN or "
            "RAY_AUTH_TOKEN_PATH"
        ) from error


def _knock(address: str) -> None:
    """Raise OSError if nothing listens where Ray would connect to; Ray would try for minutes, then end the process."""
    if "://" not in address:
        host, port = parse_address(services.canonicalize_bootstrap_address(address))
        socket.create_connection((host, int(port)), ANSWER_SECONDS).close()


def _start(cpus: int | None, gpus: int | None) -> None:
    """Start a Ray here, and again if its processes do not start in time: on a busy machine they take too long."""
    if not _keeps_token():
        os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)
    for attempt in range(1, START_ATTEMPTS + 1):
        try:
            _start_once(cpus, gpus)
            return
        except Exception as error:  # Ray raises plain ones, too
            _end_half_started(error)
            if attempt == START_ATTEMPTS or _TOO_SLOW not in str(error):
                raise ClusterError(
                    f"Ray cannot be started here: {_first_line(error)}; fix that, or pass --local"
                ) from error


def _start_once(cpus: int | None, gpus: int | None) -> None:
    with _loopback(), few_processes():
        ray.init(
            address="local",
            # with one CPU, actors that wait for the writer would leave it none
            num_cpus=max(MIN_CORES, cpus or os.cpu_count() or 1),
            num_gpus=gpus,
            include_dashboard=False,
            log_to_driver=False,
            logging_level=logging.ERROR,
            job_config=_Job(),
            **_object_store(),
            _node_ip_address="127.0.0.1",
            _temp_dir=_short_folder(get_default_ray_temp_dir()),
        )


def _end_half_started(error: Exception) -> None:
    """End the processes that a failed start has left. Ray forgets them; only the error still knows their node."""
    for frame, _ in traceback.walk_tb(error.__traceback__):
        started = frame.f_locals.get("self")
        if isinstance(started, node.Node):
            started.kill_all_processes(check_alive=False, allow_graceful=False)


def _keeps_token() -> bool:
    """Return whether Ray finds a token for its processes, or can keep a new one in the user's home folder."""
    if os.environ.get("RAY_AUTH_TOKEN") or os.environ.get("RAY_AUTH_TOKEN_PATH"):
        return True
    try:
        folder = Path.home() / ".ray"
        folder.mkdir(parents=True, exist_ok=True)
    except (OSError, RuntimeError):  # no home, or one that nobody can write to
        return False
    return os.access(folder, os.W_OK) or (folder / "auth_token").is_file()


def _object_store() -> dict[str, str | int]:
    """Return where Ray keeps what its processes share, if this machine has no memory for that under /dev/shm."""
    if os.access("/dev/shm", os.W_OK):
        return {}
    return {"_plasma_directory": str(temporary_root()), "object_store_memory": STORE_BYTES}


def _short_folder(folder: str) -> str:
    """Return the folder for Ray's files, or another one if the paths of sockets below it would be too long."""
    return folder if len(os.fsencode(folder)) <= MAX_FOLDER_BYTES else "/tmp/ray"


def _first_line(error: Exception) -> str:
    """Return the first sentence of an error: those of Ray have several paragraphs."""
    lines = [line.strip(" .") for line in str(error).splitlines() if line.strip()]
    return lines[0].partition(". ")[0] if lines else type(error).__name__


def _environment() -> dict[str, dict[str, str]]:
    """Return the settings of this process that must hold in workers on other machines, too."""
    return {"env_vars": {name: os.environ[name] for name in _PASSED_ON if name in os.environ}}


@contextmanager
def _loopback() -> Iterator[None]:
    """Make Ray listen on 127.0.0.1 alone; else it puts the host's address in its place and listens on all interfaces.

    This is the setting `RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER=0`. Ray reads it from the environment only when it is
    imported, and it must not hold for a process that joins a cluster.
    """
    before = ray_constants.ENABLE_RAY_CLUSTER
    ray_constants.ENABLE_RAY_CLUSTER = False
    try:
        yield
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = before


@contextmanager
def few_processes() -> Iterator[None]:
    """Start a Ray without its API server, log monitor and autoscaler's monitor, which serve people and clusters.

    A Ray of our own has no dashboard, passes no logs on, and cannot grow. Each of the three is a Python process that
    takes half a second of a CPU or more to start, and `ray.init` waits for the first. Ray has no setting for this.
    """
    starts = ("start_api_server", "start_log_monitor", "start_monitor")
    before = {name: getattr(node.Node, name) for name in starts}
    for name in starts:
        setattr(node.Node, name, lambda *_, **__: None)
    try:
        yield
    finally:
        for name, start in before.items():
            setattr(node.Node, name, start)
