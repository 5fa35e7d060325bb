"""`cluster/bare.sh` starts a cluster of two nodes, and the nightly CronJob's command runs a job there.

Both nodes are on this machine, so each gets ports of its own.
"""

import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from dpr.errors import ClusterError, RecipeError
from tests.manifests import CLUSTER, one
from tests.process_tree import children, title
from tests.ray_jobs.nodes.network import PORTS, ports

HERE = "127.0.0.1"


def free_ports(count: int) -> list[int]:
    """Return ports that nobody listens at."""
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.create_server((HERE, 0))) for _ in range(count)]
        return [listening.getsockname()[1] for listening in sockets]


@contextmanager
def node(arguments: list[str], environment: dict[str, str]) -> Iterator[subprocess.Popen[bytes]]:
    """Run bare.sh within the block; all that it started must have ended with it."""
    options = ports(free_ports(len(PORTS)))
    options += ["--min-worker-port=0", "--max-worker-port=0"]  # any, since two nodes would choose the same
    command = ["sh", str(CLUSTER / "bare.sh"), *arguments, *options, "--object-store-memory=100000000"]
    with subprocess.Popen(command, env=environment) as made:
        try:
            yield made
        finally:
            started = children(made.pid)
            made.send_signal(signal.SIGTERM)
            made.wait(60)
    assert started
    assert [title(pid) for pid in started if title(pid)] == []


def wait_for_port(port: int, starting: subprocess.Popen[bytes]) -> None:
    """Return when something listens at a port of this machine."""
    while True:
        try:
            socket.create_connection((HERE, port), 1).close()
            return
        except OSError:
            assert starting.poll() is None
            time.sleep(0.2)


@pytest.mark.slow
def test_the_nightly_command_runs_on_bare_machines() -> None:
    gcs, dashboard, client = free_ports(3)
    (submitter,) = one("CronJob")["spec"]["jobTemplate"]["spec"]["template"]["spec"]["containers"]
    submit = [*submitter["command"], f"--address=http://{HERE}:{dashboard}", *submitter["args"][1:]]
    # a short path: sockets have names of about a hundred bytes at most
    with tempfile.TemporaryDirectory(prefix="bare-", ignore_cleanup_errors=True) as home, ExitStack() as stack:
        environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")} | {
            "HOME": home,
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "PYTHONPATH": os.pathsep.join(sys.path),
        }
        places = [f"--port={gcs}", f"--dashboard-port={dashboard}", f"--ray-client-server-port={client}"]
        head = stack.enter_context(node(["head", HERE, *places, "--num-cpus=0", f"--temp-dir={home}/r"], environment))
        wait_for_port(dashboard, head)
        token = Path(home, ".ray", "auth_token")
        assert token.stat().st_mode & 0o777 == 0o600
        # the job needs a CPU, which the head does not have
        stack.enter_context(node(["worker", f"{HERE}:{gcs}", HERE, "--num-cpus=1"], environment))

        def submitted(secret: str) -> tuple[int, str]:
            known = environment | {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secret}
            ended = subprocess.run(
                submit, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False, env=known, timeout=200
            )
            return ended.returncode, ended.stdout

        code, output = submitted("0" * 64)
        assert code == ClusterError.exit_code
        assert "Invalid authentication token" in output
        code, output = submitted(token.read_text(encoding="utf-8").strip())
        # module and flags are right: what is missing here is the recipe, which is mounted there
        assert f"error: recipe {submitter['args'][-1]} cannot be read" in output
        assert code == RecipeError.exit_code, output
