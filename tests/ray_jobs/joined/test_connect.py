"""Joining a cluster that is absent or needs a token, and access to a Ray that a command starts."""

import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest
import ray
from ray._private.node import Node

from dpr.errors import ClusterError
from ray_jobs.connect import connected
from tests.collection import Collection
from tests.process_tree import children, name_of
from tests.ray_jobs.conftest import Dpr
from tests.ray_jobs.listening import listeners
from tests.ray_jobs.own_ray import OwnRay

HOLD = """
import os
from ray_jobs.connect import connected
import ray
with connected():
    print(os.nice(0), ray.get(ray.remote(lambda: os.nice(0)).remote()), flush=True)
    input()
"""
"""Prints its priority and that of a worker, and keeps its Ray until a line comes."""


@contextmanager
def held_ray(**settings: str) -> Iterator[tuple[int, int]]:
    """Have another process hold a Ray of its own, or a driver of another; gives its priority and that of a worker."""
    without = {"RAY_ADDRESS", "RAY_worker_niceness"}
    environment = {name: value for name, value in os.environ.items() if name not in without} | settings
    environment["PYTHONPATH"] = os.pathsep.join(sys.path)
    command = [sys.executable, "-c", HOLD]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment) as held:
        assert held.stdout
        driver, worker = (int(number) for number in held.stdout.readline().split())
        yield driver, worker
        held.communicate("\n", timeout=60)
    assert held.returncode == 0


def test_a_ray_of_our_own_listens_on_loopback_only_and_its_workers_have_the_priority_that_is_asked_for() -> None:
    mark = f"test-connect-{os.getpid()}"
    with held_ray(TEST_MARK=mark, RAY_worker_niceness="7") as (driver, worker):
        found = listeners(_marked(mark))
    assert [(name, str(address)) for name, address, _ in found if not address.is_loopback] == []
    assert {"gcs_server", "raylet"} <= {name for name, _, _ in found}
    assert worker == driver + 7


@pytest.mark.usefixtures("no_ray")
def test_a_ray_that_does_not_start_in_time_is_started_again(monkeypatch: pytest.MonkeyPatch) -> None:
    begin, late = Node.__init__, list[Node]()

    def begin_late(self: Node, *arguments: object, **options: object) -> None:
        begin(self, *arguments, **options)
        if not late:
            late.append(self)
            raise Exception("The current node timed out during startup. This could happen because …")

    monkeypatch.setattr(Node, "__init__", begin_late)
    with connected(cpus=2):
        assert ray.get(ray.remote(lambda: 7).remote()) == 7
        assert [name_of(pid) for pid in children(os.getpid())].count("raylet") == 1
    assert late


def test_workers_have_the_priority_of_who_started_their_ray_unless_another_is_asked_for(lasting_ray: OwnRay) -> None:
    with held_ray(**lasting_ray.environment) as (driver, worker):
        assert worker == driver


@pytest.mark.usefixtures("no_ray")
@pytest.mark.parametrize("address", ["127.0.0.1:1", "nowhere", "no-such-host.invalid:6379"])
def test_a_cluster_that_is_not_there_is_named_in_a_sentence(
    recipe: Path, address: str, dpr: Dpr, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", address)
    code, out, message = dpr("run", recipe)
    assert (code, out) == (ClusterError.exit_code, "")
    assert message.startswith(f"error: the Ray cluster {address} that RAY_ADDRESS names cannot be joined: ")
    assert message.count("\n") == 1


def test_who_has_no_token_or_a_wrong_one_is_refused_in_a_sentence(
    lasting_ray: OwnRay, recipe: Path, tmp_path: Path
) -> None:
    wrong = {"RAY_AUTH_TOKEN": "0" * 64}
    nowhere = {"RAY_AUTH_TOKEN": None, "RAY_AUTH_TOKEN_PATH": str(tmp_path)}
    without_mode = {"RAY_AUTH_TOKEN": None, "RAY_AUTH_MODE": None}
    address = lasting_ray.environment["RAY_ADDRESS"]

    def message_after(change: Mapping[str, str | None]) -> str:
        environment = lasting_ray.environment | {"HOME": str(tmp_path)} | change
        return refused(recipe, {name: value for name, value in environment.items() if value is not None})

    with ThreadPoolExecutor(3) as pool:  # each waits for Ray most of its time
        messages = list(pool.map(message_after, (wrong, nowhere, without_mode)))
    for message in messages:
        *warnings, last = message.splitlines()
        assert last.startswith(f"error: the Ray cluster {address} that RAY_ADDRESS names")
        assert "token" in last
        # it warns before it is connected, since Ray may end the process in that call
        assert [line for line in warnings if "gcs_client" not in line] == []


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory, static_encoder: Path) -> Path:
    return Collection(tmp_path_factory.mktemp("connect"), static_encoder).write_recipe()


def refused(recipe: Path, environment: dict[str, str]) -> str:
    """Return what the nightly job prints on stderr."""
    command = [sys.executable, "-m", "ray_jobs.nightly", "--recipe", str(recipe)]
    ended = subprocess.run(command, capture_output=True, text=True, check=False, timeout=150, env=environment)
    assert ended.returncode == ClusterError.exit_code == 12, ended.stderr
    assert ended.stdout == ""
    return ended.stderr


def _marked(mark: str) -> list[int]:
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if mark.encode() in (folder / "environ").read_bytes():
                found.append(int(folder.name))
        except OSError:  # it ended meanwhile
            continue
    return found
