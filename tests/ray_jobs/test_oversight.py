"""A worker that hangs in a unit is named, then killed, and its unit is done elsewhere.

Progress lines do not report a worker that died by itself as one that hangs.
"""

import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import ray

from dpr.engine.executor import Lost
from dpr.engine.stage import Place, Step, Work
from dpr.errors import UnitError
from dpr.recipe import Resources
from ray_jobs import oversight, ray_executor
from ray_jobs.oversight import Oversight, end_worker
from ray_jobs.ray_executor import RayExecutor
from tests.ray_jobs.local_ray import LocalRay
from tests.ray_jobs.steps import BEAT_SECONDS, CHOSEN, Fault, MakeHang, die_at_work, pids
from tests.ray_jobs.units import samples

pytestmark = pytest.mark.slow

IDLE_SECONDS = 5.0
"""A recipe allows no bound below 20 seconds, at a heartbeat every 5."""
PATIENCE_SECONDS = 120.0
RETRIES = 1
"""Fewer than the project's own, so that fewer workers need be waited for."""
NAMED = {"stopped": "has sent no heartbeat for ", "waits forever": "has used no CPU for "}
ENDED = f"used no CPU, or sent no heartbeat, for {IDLE_SECONDS:.0f} s and was killed; Ray repeats the unit"


def impatient() -> Resources:
    """Return settings that a recipe does not allow."""
    return Resources().model_copy(update={"idle_seconds": IDLE_SECONDS})


class Heard:
    """Keeps what a person would read."""

    def __init__(self) -> None:
        self.waits: list[str] = []
        self.messages: list[tuple[str, str]] = []

    def waiting(self, text: str) -> None:
        self.waits.append(text)

    def message(self, topic: str, text: str) -> None:
        self.messages.append((topic, text))


class Deaf(Heard):
    """Fails when it is to show that a stage waits, as printing to a closed pipe does."""

    def waiting(self, text: str) -> None:
        super().waiting(text)
        if text:
            raise BrokenPipeError(text)


@pytest.fixture(scope="module", autouse=True)
def two_cpus(local_ray: LocalRay) -> Iterator[None]:
    local_ray.use(cpus=2)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(oversight, "LOOK_SECONDS", 0.5)
        patch.setattr(oversight, "BEAT_SECONDS", BEAT_SECONDS)
        yield


@pytest.mark.parametrize(
    ("on", "units", "fault"),
    [
        ("task", 1, "stopped"),
        ("task", 5, "waits forever"),
        ("actor", 5, "stopped"),
        ("encoder", 5, "waits forever"),
    ],
)
def test_a_worker_that_hangs_is_named_and_its_unit_is_done_elsewhere(
    on: Place, units: int, fault: Fault, tmp_path: Path
) -> None:
    marks, heard = tmp_path / "marks", Heard()
    executor = RayExecutor(impatient(), heard)
    given = samples(units) if units > 1 else [CHOSEN]
    done = list(executor.run("embed", Work.of(Step("hang", MakeHang(marks, fault, 1), on)), given))
    assert sorted(done, key=lambda unit: unit.number) == given
    (pid,) = pids(marks)
    named = f"process {pid} on {socket.gethostname()} (hang of {CHOSEN.record})"
    assert [wait for wait in heard.waits if wait.startswith(f"{named} {NAMED[fault]}")]
    assert heard.waits[-1] == ""
    assert heard.messages == [("embed", f"{named} {ENDED}")]
    assert not Path(f"/proc/{pid}").exists()
    assert executor.take_lost() == Lost(units=1, workers=1)
    assert executor.take_lost() == Lost()


def test_a_unit_whose_workers_all_hang_ends_the_stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray_executor, "LOST_RETRIES", RETRIES)
    marks = tmp_path / "marks"
    executor = RayExecutor(impatient())
    work = Work.of(Step("hang", MakeHang(marks, "stopped", 100)))
    with pytest.raises(UnitError, match=rf"^stage scan: the workers of {CHOSEN.record} did nothing for longer than "):
        list(executor.run("scan", work, samples(5)))
    assert len(pids(marks)) == 1 + RETRIES


def test_a_listener_that_fails_ends_the_stage_but_not_its_oversight(tmp_path: Path) -> None:
    marks, deaf = tmp_path / "marks", Deaf()
    work = Work.of(Step("hang", MakeHang(marks, "stopped", 1)))
    with pytest.raises(BrokenPipeError):  # with the result, so the worker that hangs was killed and its unit repeated
        list(RayExecutor(impatient(), deaf).run("scan", work, [CHOSEN]))
    (pid,) = pids(marks)
    assert not Path(f"/proc/{pid}").exists()
    assert [topic for topic, _ in deaf.messages] == ["scan"]


def test_a_worker_that_died_is_not_said_to_hang_or_to_be_killed() -> None:
    heard = Heard()
    watcher = Oversight(IDLE_SECONDS, RETRIES, heard)
    dying = ray.remote(die_at_work).options(max_retries=0).remote(watcher.heartbeats, CHOSEN.record)
    with pytest.raises(ray.exceptions.WorkerCrashedError):
        ray.get(dying)
    with watcher.watch("scan", [CHOSEN.record]) as under_way:
        last = time.monotonic() + PATIENCE_SECONDS
        while "Ray has to repeat 1 unit, whose workers were killed or died" not in heard.waits:
            assert time.monotonic() < last, heard.waits
            time.sleep(0.1)
    assert "or has died and Ray repeats its unit" in next(filter(None, heard.waits))
    assert heard.messages == []
    assert under_way.given_up_records() == set()


def test_only_a_process_of_the_same_parent_is_ended() -> None:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as child:
        assert not end_worker(child.pid)  # whose parent is this process, not the parent of this process
        child.communicate(b"\n")
    assert child.returncode == 0
    assert not end_worker(2**30)  # which is no process
