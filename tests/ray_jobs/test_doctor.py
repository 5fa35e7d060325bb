"""`dpr doctor`: its findings on this machine, and its sentences about unfit machines."""

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from dpr.operations.check import Finding
from ray_jobs.doctor import Cluster, diagnose
from ray_jobs.node_facts import NodeFacts, facts_here
from tests.ray_jobs.conftest import Dpr
from tests.ray_jobs.local_ray import LocalRay

NODE = NodeFacts(
    "one", {"python": "3.12.3", "ray": "2.60.0"}, 0.1, 10**10, "/cache", 10**11, ("H100",), (), (), is_root=False
)
TWO = replace(NODE, name="two")
SERVER = """
import socket, sys
server = socket.create_server((sys.argv[1], 0))
print(server.getsockname()[1], flush=True)
sys.stdin.read()
"""


def found(*nodes: NodeFacts, silent: tuple[str, ...] = (), has_token: bool = True) -> dict[str, Finding]:
    findings = diagnose(Cluster(nodes, silent, "10.0.0.1:6379", has_token))
    return {finding.topic: finding for finding in findings}


@pytest.mark.without_ray
def test_two_equal_machines_are_fit() -> None:
    findings = found(NODE, TWO)
    assert [finding.error for finding in findings.values()] == [None] * 8
    assert findings["GPUs"].sentence == "2 H100"
    assert findings["machines"].sentence == "2 of 10.0.0.1:6379: one, two"


@pytest.mark.without_ray
@pytest.mark.parametrize(
    ("topic", "fault", "sentence"),
    [
        ("versions", {"versions": NODE.versions | {"ray": "2.59.0"}}, "ray is 2.60.0, and two has 2.59.0; install the"),
        ("versions", {"versions": {"python": "3.12.3"}}, "ray is 2.60.0, and two has none; install the same versions"),
        ("clocks", {"clock": -90.0}, "the clock of two is 90 s behind the one here .* start a time service"),
        ("memory", {"shared_bytes": 64 * 2**20}, "/dev/shm of two has 67 MB .at least 1,000.*.--shm-size"),
        ("cache", {"cache_free_bytes": None}, "the cache folder /cache of two cannot be written; set DPR_CACHE there"),
        ("cache", {"cache_free_bytes": 10**9}, "1.0 GB are free for the cache /cache of two .at least 5"),
        ("GPUs", {"gpu_faults": ("GPU 3 is lost",)}, "two: GPU 3 is lost; take that machine out of the cluster"),
    ],
)
def test_a_machine_that_is_not_fit_is_named(topic: str, fault: dict[str, object], sentence: str) -> None:
    findings = found(NODE, replace(NODE, name="three"), replace(TWO, **fault))
    with pytest.raises(Exception, match=sentence):
        raise findings[topic].error or AssertionError("no error")
    assert [name for name, finding in findings.items() if finding.error] == [topic]


@pytest.mark.without_ray
def test_open_ports_need_a_token() -> None:
    reached = replace(NODE, reachable=("raylet 10.0.0.2:6789",))
    assert found(reached)["ports"].error is None
    error = found(reached, has_token=False)["ports"].error
    assert "1 ports are open beyond loopback, such as one: raylet 10.0.0.2:6789" in str(error)
    assert found(NODE, has_token=False)["ports"].error is None


@pytest.mark.without_ray
def test_machines_where_ray_runs_as_root_are_named() -> None:
    assert found(NODE)["rights"].sentence == "Ray runs as root nowhere"
    assert found(NODE, replace(TWO, is_root=True))["rights"].sentence.startswith("Ray runs as root on two, which")


@pytest.mark.without_ray
def test_machines_that_do_not_answer_are_named() -> None:
    assert "two did not answer within" in str(found(NODE, silent=("two",))["machines"].error)
    (alone,) = found(silent=("one", "two")).values()  # nothing is known of anything else
    assert "one, two did not answer" in str(alone.error)


@contextmanager
def process_of_ray(folder: Path, address: str) -> Iterator[int]:
    """Run a process that the kernel calls raylet and that listens; gives its port."""
    program = folder / "raylet"
    program.unlink(missing_ok=True)
    program.symlink_to(sys.executable)
    command = [str(program), "-I", "-c", SERVER, address]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        yield int(process.stdout.readline())
        process.communicate("")


@pytest.mark.without_ray
@pytest.mark.parametrize(("address", "is_found"), [("0.0.0.0", True), ("127.0.0.1", False)])
def test_what_listens_beyond_loopback_is_found(address: str, is_found: bool, tmp_path: Path) -> None:
    with process_of_ray(tmp_path, address) as port:
        assert (f"raylet 0.0.0.0:{port}" in facts_here().reachable) == is_found


def test_this_machine_and_a_store_are_examined(dpr: Dpr, local_ray: LocalRay, tmp_path: Path) -> None:
    local_ray.use()
    _, out, _ = dpr("doctor", str(tmp_path / "store"), "--json")
    findings = {row["topic"]: row for row in json.loads(out)}
    assert list(findings) == ["machines", "versions", "clocks", "memory", "cache", "GPUs", "ports", "rights", "store"]
    assert all(findings[topic]["ok"] for topic in ("machines", "versions", "clocks", "store"))
    assert f"python {sys.version.split()[0]}" in findings["versions"]["found"]
    assert "refuses to replace an object" in findings["store"]["found"]


def test_a_store_that_cannot_be_written_is_said(dpr: Dpr, local_ray: LocalRay, tmp_path: Path) -> None:
    local_ray.use()
    (tmp_path / "file").write_text("no folder")
    code, out, _ = dpr("doctor", str(tmp_path / "file"))
    assert (code, "failed  store" in out) == (5, True) or code == 12
    assert "is a file or lies below one" in out
