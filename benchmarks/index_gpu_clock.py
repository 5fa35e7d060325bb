"""Where the time of an index stage goes: the product's steps, run through Ray, with their inner functions clocked."""

import json
import sys
import threading
import time
import uuid
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from dpr.engine.stage import A, B, Recorded, Step, Work
from dpr.recipe import Resources
from ray_jobs.ray_executor import RayExecutor

CLOCKED = (
    "_training_sample",
    "train",
    "quantisation_error",
    "list_imbalance",
    "_codebook_of",
    "fetch_object",
    "SegmentVectors.open",
    "SegmentVectors.all",
    "build_part",
    "write_part",
    "put_object",
    "merge",
    "open_verified",
    "read_faiss",
    "verify_index",
    "relative_error",
)
"""Functions of the step's module, and methods of classes in it; the seconds of one called within another count for
both, and those of threads add up."""


class ClockedExecutor(RayExecutor):
    """Ray as always; each unit leaves a file of seconds in `folder`."""

    def __init__(self, resources: Resources, folder: Path) -> None:
        super().__init__(resources)
        self._folder = folder

    def run(self, stage: str, work: Work[A, B], units: Sequence[A]) -> Iterator[B]:
        first, *others = work.steps
        clocked: Step[Any, Any] = Step(first.name, partial(Clocked, first.make, stage, self._folder), first.on)
        return super().run(stage, Work((clocked, *others)), units)


class Clocked:
    """A step, and its clocks."""

    def __init__(self, make: Callable[[], Callable[[Any], Any]], stage: str, folder: Path) -> None:
        self._seconds: dict[str, float] = defaultdict(float)
        self._stage, self._folder = stage, folder
        is_last = isinstance(make, partial) and make.func is Recorded
        operator = make.args[-1] if is_last else make  # the last step is within `Recorded`
        module = sys.modules[getattr(operator, "func", operator).__module__]  # of a class, with or without arguments
        for name in CLOCKED:
            owner, _, own_name = name.rpartition(".")
            holder = getattr(module, owner, None) if owner else module
            if hasattr(holder, own_name):
                inner = getattr(holder, own_name)
                setattr(holder, own_name, self._clock(name, getattr(inner, "unclocked", inner)))
        started = time.perf_counter()
        self._step = make()
        self._made_seconds = time.perf_counter() - started

    def __call__(self, unit: Any) -> Any:
        self._seconds.clear()
        stop, peak = threading.Event(), [_anonymous_bytes()]
        watcher = threading.Thread(target=_watch, args=(stop, peak))
        watcher.start()
        started = time.perf_counter()
        result = self._step(unit)
        figures = {
            "stage": self._stage,
            "made": self._made_seconds,
            "all": time.perf_counter() - started,
            "peak_bytes": peak[0],
        }
        stop.set()
        watcher.join()
        (self._folder / f"{uuid.uuid4().hex}.json").write_text(json.dumps(figures | {"inner": self._seconds}))
        self._made_seconds = 0.0
        return result

    def _clock(self, name: str, inner: Callable[..., Any]) -> Callable[..., Any]:
        def clocked(*args: Any, **options: Any) -> Any:
            started = time.perf_counter()
            try:
                return inner(*args, **options)
            finally:
                self._seconds[name] += time.perf_counter() - started

        clocked.unclocked = inner  # type: ignore[attr-defined]
        return clocked


def _watch(stop: threading.Event, peak: list[int]) -> None:
    while not stop.wait(0.02):
        peak[0] = max(peak[0], _anonymous_bytes())


def _anonymous_bytes() -> int:
    """Memory of this process but what is mapped from files, which can be dropped at any time."""
    status = Path("/proc/self/status").read_text().splitlines()
    (line,) = [line for line in status if line.startswith("RssAnon")]
    return 1024 * int(line.split()[1])


def clocks(folder: Path, stage: str) -> tuple[dict[str, float], int]:
    """Seconds of all units of a stage, function by function, and the peak anonymous bytes of the largest process."""
    total: dict[str, float] = defaultdict(float)
    peak_bytes = 0
    for path in folder.glob("*.json"):
        figures = json.loads(path.read_text())
        if figures["stage"] == stage:
            peak_bytes = max(peak_bytes, figures["peak_bytes"])
            for name, seconds in {"making": figures["made"], "units": figures["all"], **figures["inner"]}.items():
                total[name] += seconds
    return dict(total), peak_bytes
