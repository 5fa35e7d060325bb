"""Steps that tests run on Ray.

Workers import this module, not the tests: without pytest and Ray Data, it saves seconds.
"""

import os
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
import ray
from numpy.typing import NDArray

from dpr.errors import CorpusError
from ray_jobs import heartbeats
from ray_jobs.heartbeats import Handle, LostTooOftenError, beating
from tests.ray_jobs.units import Sample

CHOSEN = Sample(3)
"""The unit at which a `Crash` or a `Hang` does what its name says."""
BEAT_SECONDS = 1.0
"""Seconds between the heartbeats of a worker that will hang."""
VALUE_BYTES = 64 << 20
Fault = Literal["stopped", "waits forever"]


class Pass:
    """Answers with the unit."""

    def __call__(self, unit: Sample) -> Sample:
        return unit


class Refuse:
    """Fails as the project does."""

    def __call__(self, unit: Sample) -> Sample:
        raise CorpusError(f"unit {unit.record} is refused")


class Fail:
    """Fails as a bug does."""

    def __call__(self, unit: Sample) -> Sample:
        raise ValueError(f"{unit.number} is unexpected\nand this is a second line")


class SayLost:
    """Says of one unit that its workers died too often."""

    def __call__(self, unit: Sample) -> Sample:
        if unit == CHOSEN:
            raise LostTooOftenError(unit.record)
        return unit


class Where:
    """Returns which GPUs Ray gave it, and which process it is."""

    def __call__(self, unit: Sample) -> Sample:
        time.sleep(0.05)
        gpus = ray.get_runtime_context().get_accelerator_ids()["GPU"]
        return replace(unit, gpus=tuple(gpus), process=os.getpid())


class Load:
    """Leaves a file when it is made, unless it is refused."""

    def __init__(self, folder: Path) -> None:
        if (folder / "refuse").exists():
            raise CorpusError("this is refused")
        (folder / f"made-{os.getpid()}").touch()

    def __call__(self, unit: Sample) -> Sample:
        return replace(unit, process=os.getpid())


class Sum:
    """Answers with the sum of a shared array."""

    def __init__(self, shared: Callable[[], NDArray[np.uint8]]) -> None:
        self._shared = shared()

    def __call__(self, unit: Sample) -> Sample:
        return Sample(unit.number, size=float(self._shared.sum(dtype=np.int64)))


def ones() -> NDArray[np.uint8]:
    return np.ones(VALUE_BYTES, np.uint8)


class Crash:
    """Ends its process at one unit, as a segmentation fault does, and leaves a mark each time."""

    def __init__(self, marks: Path) -> None:
        self._marks = marks

    def __call__(self, unit: Sample) -> Sample:
        if unit == CHOSEN:
            crash(self._marks)
        return unit


class CrashWhenMade:
    """Ends its process when it is made."""

    def __init__(self, marks: Path) -> None:
        crash(marks)

    def __call__(self, unit: Sample) -> Sample:
        return unit


def crash(marks: Path) -> None:
    with marks.open("a", encoding="ascii") as file:
        file.write("x")
    os._exit(1)


class Hang:
    """Hangs at one unit, the first `times` that it comes."""

    def __init__(self, marks: Path, fault: Fault, times: int) -> None:
        self._marks, self._fault, self._times = marks, fault, times

    def __call__(self, unit: Sample) -> Sample:
        if unit == CHOSEN and len(pids(self._marks)) < self._times:
            with self._marks.open("a", encoding="ascii") as file:
                file.write(f"{os.getpid()}\n")
            if self._fault == "stopped":
                os.kill(os.getpid(), signal.SIGSTOP)
            else:
                threading.Event().wait()
        return unit


class Linger:
    """Takes long at one unit, the first time that it comes, and leaves a mark when it begins."""

    def __init__(self, marks: Path) -> None:
        self._marks = marks

    def __call__(self, unit: Sample) -> Sample:
        if unit == CHOSEN and not self._marks.exists():
            self._marks.touch()
            time.sleep(600)
        return unit


def pids(marks: Path) -> list[int]:
    """Return the processes that have hung so far."""
    return [int(line) for line in marks.read_text().split()] if marks.exists() else []


@dataclass(frozen=True)
class MakeHang:
    """Makes a `Hang`, in a worker that sends heartbeats more often from the moment that it receives this.

    It goes on to do so in later tests, which does no harm.
    """

    marks: Path
    fault: Fault
    times: int

    def __call__(self) -> Hang:
        return Hang(self.marks, self.fault, self.times)

    def __reduce__(self) -> "tuple[Callable[..., MakeHang], tuple[Path, Fault, int]]":
        return _make_in_worker, (self.marks, self.fault, self.times)


def _make_in_worker(marks: Path, fault: Fault, times: int) -> MakeHang:
    heartbeats.BEAT_SECONDS = BEAT_SECONDS
    return MakeHang(marks, fault, times)


def die_at_work(beats: Handle, record: str) -> None:
    """End this process in the middle of a unit, as a segmentation fault does."""
    with beating(beats, "crash", record):
        os._exit(1)
