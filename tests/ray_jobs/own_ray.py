"""A Ray for one test, which outlives its drivers, and the processes of that Ray."""

import os
import re
import secrets
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.process_tree import children, name_of, title

HOLD = """
import sys
import ray_jobs  # its settings of Ray
import ray
from ray_jobs.connect import few_processes
with few_processes():
    context = ray.init(
        address="local", num_cpus=2, include_dashboard=False, log_to_driver=False, _node_ip_address="127.0.0.1",
        _temp_dir=sys.argv[1],
    )
print(context.address_info["gcs_address"], flush=True)
sys.stdin.read()
"""
TASKS = (
    "scan",
    "diff",
    "write",
    "copy",
    "drift",
    "train",
    "build",
    "merge",
    "invert",
    "questions",
    "truth",
    "sentences",
    "gate",
    "fp8",
    "modes",
)
"""Steps that run as tasks, named by their last step."""
SHARED = ("load_known_keys", "shared_tokenizer")
STEPS = re.compile(rf"ray::(.*Map\(.*|{'|'.join(TASKS + SHARED)})")
"""Titles of workers that run steps of this project; others belong to Ray itself, or wait for work (`ray::IDLE`)."""


@dataclass(frozen=True)
class OwnRay:
    """A running Ray; a driver uses it if it is started with `environment`."""

    environment: dict[str, str]
    raylet_pid: int

    def workers(self) -> dict[int, str]:
        """Return pid → what it runs ("MapWorker(Map(encode))", "scan", …) for all workers that run steps."""
        titles = {pid: STEPS.fullmatch(title(pid)) for pid in children(self.raylet_pid)}
        return {pid: step[1] for pid, step in titles.items() if step}


@contextmanager
def own_ray() -> Iterator[OwnRay]:
    """Start a Ray with a token, ports and folders of its own; it ends with the block, and with this process."""
    # a short path: sockets have names of about a hundred bytes at most
    with tempfile.TemporaryDirectory(prefix="ray-", ignore_cleanup_errors=True) as folder:
        scratch = Path(folder, "scratch")  # what killed processes leave goes away with it
        scratch.mkdir()
        environment = os.environ | {
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": secrets.token_hex(32),
            "PYTHONPATH": os.pathsep.join(sys.path),
            "TMPDIR": str(scratch),
        }
        for name in ("RAY_ADDRESS", "RAY_worker_niceness"):  # the latter is a setting of ray_jobs, which sets it
            environment.pop(name, None)
        command = [sys.executable, "-c", HOLD, folder]
        with subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        ) as holder:
            assert holder.stdout
            assert holder.stdin
            address = holder.stdout.readline().strip()
            assert address, "Ray did not start"
            raylet_pid = next(pid for pid in children(holder.pid) if name_of(pid) == "raylet")
            try:
                yield OwnRay(environment | {"RAY_ADDRESS": address}, raylet_pid)
            finally:
                for pid in children(holder.pid):
                    os.kill(pid, signal.SIGCONT)  # Ray waits for a process that a failed test has left stopped
                holder.stdin.close()
                holder.wait(60)
