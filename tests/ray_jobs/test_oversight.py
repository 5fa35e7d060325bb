"""A worker that hangs in a unit is named, then ended, and its unit is done elsewhere."""

import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Literal

import pytest

from dpr.engine.stage import Place, Step, Work
from dpr.errors import UnitError
from dpr.recipe import Resources
from ray_jobs import oversight
from ray_jobs.connect import connected
from ray_jobs.oversight import end_worker
from ray_jobs.ray_executor import LOST_RETRIES, RayExecutor
from tests.ray_jobs.units import Sample, samples

pytestmark = pytest.mark.slow

HANGING = Sample(3)
IDLE_SECONDS = 3.0
Way = Literal["stopped", "waits for ever"]


class Hang:
    """Hangs at one unit, the first `times` that it comes."""

    def __init__(self, marks: Path, way: Way, times: int) -> None:
        self._marks, self._way, self._times = marks, way, times

    def __call__(self, unit: Sample) -> Sample:
        if unit == HANGING and len(pids(self._marks)) < self._times:
            with self._marks.open("a", encoding="ascii") as file:
                file.write(f"{os.getpid()}\n")
            if self._way == "stopped":
                os.kill(os.getpid(), signal.SIGSTOP)
            else:
                threading.Event().wait()
        return unit


def pids(marks: Path) -> list[int]:
    """Return the processes that have hung so far."""
    return [int(line) for line in marks.read_text().split()] if marks.exists() else []


class Heard:
    """Keeps what a person would read."""

    def __init__(self) -> None:
        self.waits: list[str] = []
        self.messages: list[tuple[str, str]] = []

    def waiting(self, text: str) -> None:
        self.waits.append(text)

    def message(self, topic: str, text: str) -> None:
        self.messages.append((topic, text))


@pytest.fixture(scope="module", autouse=True)
def two_cpus() -> Iterator[None]:
    with connected(cpus=2), pytest.MonkeyPatch.context() as patch:
        patch.setattr(oversight, "LOOK_SECONDS", 0.5)
        yield


@pytest.mark.parametrize(
    ("on", "units", "way"),
    [
        ("task", 1, "stopped"),
        ("task", 5, "waits for ever"),
        ("actor", 5, "stopped"),
        ("encoder", 5, "waits for ever"),
    ],
)
def test_a_worker_that_hangs_is_named_and_its_unit_is_done_elsewhere(
    on: Place, units: int, way: Way, tmp_path: Path
) -> None:
    marks, heard = tmp_path / "marks", Heard()
    executor = RayExecutor(Resources(idle_seconds=IDLE_SECONDS), heard)
    given = samples(units) if units > 1 else [HANGING]
    done = list(executor.run("embed", Work.of(Step("hang", partial(Hang, marks, way, 1), on)), given))
    assert sorted(done, key=lambda unit: unit.number) == given
    (pid,) = pids(marks)
    named = f"process {pid} on {socket.gethostname()} (hang of {HANGING.record})"
    assert [wait for wait in heard.waits if wait.startswith(f"{named} has done nothing for ")]
    assert heard.waits[-1] == ""
    ((topic, message),) = heard.messages
    assert topic == "embed"
    assert message.startswith(f"{named} did nothing for ")
    assert not Path(f"/proc/{pid}").exists()


def test_a_unit_whose_workers_all_hang_ends_the_stage(tmp_path: Path) -> None:
    marks = tmp_path / "marks"
    executor = RayExecutor(Resources(idle_seconds=IDLE_SECONDS))
    work = Work.of(Step("hang", partial(Hang, marks, "stopped", 100)))
    with pytest.raises(UnitError, match=rf"^stage scan: the workers of {HANGING.record} did nothing for longer than "):
        list(executor.run("scan", work, samples(5)))
    assert len(pids(marks)) == 1 + LOST_RETRIES


def test_only_a_process_of_the_same_parent_is_ended() -> None:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as child:
        end_worker(child.pid)  # whose parent is this process, not the parent of this process
        child.communicate(b"\n")
    assert child.returncode == 0
    end_worker(2**30)  # which is no process
