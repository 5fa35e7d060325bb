"""Commands that are stopped: they say so in one sentence, release the store, and leave no process behind."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from dpr.store import LocalStore
from dpr.store.lease import Lease
from tests.process_tree import descendants

HOLD_AND_WAIT = """
import sys
import time
import ray
from ray_jobs.connect import connected
from ray_jobs.guard import guarded
from dpr.store import LocalStore
from dpr.store.lease import Lease

def work():
    with Lease.acquire(LocalStore(sys.argv[1]), "a run"):
        if sys.argv[2] == "local":
            wait()
        with connected(cpus=2):
            ray.get(ray.remote(wait).remote())

def wait():
    open(sys.argv[3], "w").close()
    time.sleep(600)

sys.exit(guarded(work))
"""


@pytest.mark.parametrize(("where", "number"), [("local", signal.SIGINT), ("ray", signal.SIGTERM)])
def test_a_command_that_is_stopped_releases_the_store_and_leaves_no_process(
    tmp_path: Path, where: str, number: signal.Signals
) -> None:
    script = HOLD_AND_WAIT.replace("sys.argv[3]", repr(str(tmp_path / "waits")))  # a worker has arguments of its own
    command = [sys.executable, "-c", script, str(tmp_path / "store"), where]
    # not in the process group of pytest, as a shell does it
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    ) as process:
        while not (tmp_path / "waits").exists():
            assert process.poll() is None, process.stderr
            time.sleep(0.1)
        started = descendants(process.pid)
        process.send_signal(number)
        out, err = process.communicate(timeout=60)
    assert (process.returncode, out) == (128 + number, "")
    assert err == f"stopped by {number.name}; finished work is kept, so start the same command again to go on\n"
    assert bool(started) is (where == "ray")
    until = time.monotonic() + 30
    while any(Path(f"/proc/{pid}").exists() for pid in started):
        assert time.monotonic() < until
        time.sleep(0.1)
    with Lease.acquire(LocalStore(tmp_path / "store"), "the next run", ttl_seconds=600.0):
        pass
