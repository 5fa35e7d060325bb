"""The loss of a machine is not held against the units that it worked on."""

import threading
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from ray.cluster_utils import Cluster

from dpr.engine.stage import Place, Step, Work
from dpr.recipe import Resources
from ray_jobs import heartbeats
from ray_jobs.connect import connected
from ray_jobs.heartbeats import Call, Heartbeats
from ray_jobs.ray_executor import RayExecutor
from tests.ray_jobs.steps import CHOSEN, Linger
from tests.ray_jobs.units import Sample, samples

RETRIES = 2
PATIENCE_SECONDS = 200.0


def call(record: str, node_id: str, pid: int) -> Call:
    return Call("encode", record, node_id, "host", pid)


def test_only_deaths_on_machines_that_are_there_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    alive = {"a": True, "b": True, "lost": False}
    nodes = [{"NodeID": name, "Alive": there} for name, there in alive.items()]
    monkeypatch.setattr(heartbeats.ray, "nodes", lambda: nodes)
    beats = Heartbeats(RETRIES)
    places = ["a", "lost", "b", "lost", "lost", "a", "b"]
    answers = [beats.begin(call("x", node_id, pid), 0.0) for pid, node_id in enumerate(places)]
    # before each call: 0, 1 (a), 1, 2 (b), 2, 2, 3 (a) deaths
    assert answers == [(), (), (), (), (), (), ("x",)]
    first = call("y", "a", 1)
    assert beats.begin(first, 0.0) == ()
    beats.ended(first)
    for pid in range(2, 9):  # a unit that ended is done again because its result was lost
        again = call("y", "a", pid)
        assert beats.begin(again, 0.0) == ()
        beats.ended(again)
    assert [beats.begin(call("z", "a", 1), 0.0) for _ in range(7)] == [()] * 7  # sent again to a process that lives


def test_the_starts_of_an_actor_are_counted_in_the_same_way(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(heartbeats.ray, "nodes", lambda: [{"NodeID": "a", "Alive": True}])
    beats = Heartbeats(RETRIES)
    assert all(beats.start("actor", "lost") for _ in range(20))
    assert [beats.start("actor", "a") for _ in range(6)] == [True] * (1 + 2 * RETRIES) + [False]


@pytest.fixture
def cluster(no_ray: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:  # noqa: ARG001
    """A Ray whose head does no work."""
    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    monkeypatch.setenv("RAY_ADDRESS", made.address)
    yield made
    made.shutdown()


@pytest.mark.slow
@pytest.mark.parametrize("on", ["actor", "task"])
def test_a_unit_whose_machine_is_lost_is_done_on_another(cluster: Any, on: Place, tmp_path: Path) -> None:
    lost, marks = cluster.add_node(num_cpus=2), tmp_path / "marks"
    found: list[Sample] = []
    with connected():
        executor = RayExecutor(Resources())
        work = Work.of(Step("linger", partial(Linger, marks), on))
        running = threading.Thread(target=lambda: found.extend(executor.run("embed", work, samples(5))))
        running.start()
        until = time.monotonic() + PATIENCE_SECONDS
        while not marks.exists():
            assert time.monotonic() < until
            time.sleep(0.1)
        cluster.remove_node(lost, allow_graceful=False)
        cluster.add_node(num_cpus=2)
        running.join(PATIENCE_SECONDS)
    assert sorted(unit.number for unit in found) == [unit.number for unit in samples(5)]
    assert CHOSEN in found
