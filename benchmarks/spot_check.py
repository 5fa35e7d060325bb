"""Whether the simulation of lost machines predicts a real stage: units that sleep, on a local Ray, with kills.

    python -m benchmarks.spot_check --out spot.md

The units go through the product's own executor, and processes are killed at random while they work. The simulation is
given what a stage without kills took, and how long a killed process was missing.
"""

import argparse
import os
import random
import signal
import statistics
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import ray

from benchmarks.spot import SleepingUnit, Slept, Stage, make_sleep, put_report, simulate
from dpr.engine.stage import Step, Work
from dpr.recipe import Resources
from ray_jobs.ray_executor import RayExecutor


class Killer:
    """Kills processes that work on a unit, each at random, so many times in an hour of their work."""

    def __init__(self, folder: Path, losses_per_hour: float, seed: int) -> None:
        self._folder, self._rate, self._draw = folder, losses_per_hour / 3600.0, random.Random(seed)
        self._done = threading.Event()
        self.lost: list[tuple[int, float, float]] = []
        """Process, when its unit began, when it was killed."""
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> "Killer":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()

    def _run(self) -> None:
        step = 0.1
        while not self._done.wait(step):
            for pid, begin in under_way(self._folder):
                if self._draw.random() < self._rate * step and pid not in {lost for lost, _, _ in self.lost}:
                    self.lost.append((pid, begin, time.time()))
                    os.kill(pid, signal.SIGKILL)


def under_way(folder: Path) -> Iterator[tuple[int, float]]:
    """Yield process and begin of each unit that works."""
    for path in folder.iterdir():
        if path.suffix != ".done":
            _, pid, begin = path.name.rsplit("-", 2)
            if Path(f"/proc/{pid}").exists():
                yield int(pid), float(begin)


@dataclass(frozen=True)
class Seen:
    """What a stage on Ray took."""

    seconds: float
    lost: int
    repeated_seconds: float
    replaced_after: float
    overhead_seconds: float
    """Between two units of a process."""


def check(units: int, seconds: float, slots: int, losses_per_hour: float) -> list[str]:
    """Return what was seen on a local Ray, and what the simulation predicts of it."""
    ray.init(num_cpus=slots, include_dashboard=False, logging_level="ERROR", log_to_driver=False)
    with tempfile.TemporaryDirectory() as name:
        calm = run_stage(Path(name, "calm"), units, seconds, slots, 0.0)
        seen = run_stage(Path(name, "spot"), units, seconds, slots, losses_per_hour)
    ray.shutdown()
    stage = [Stage("sleep", units, seconds + calm.overhead_seconds, 1)]
    undisturbed = simulate(stage, slots, 0.0, 0.0).seconds
    found = [simulate(stage, slots, losses_per_hour, seen.replaced_after, seed) for seed in range(400)]
    rows = (
        ("seconds", seen.seconds, [each.seconds for each in found]),
        ("units lost", seen.lost, [each.lost_units for each in found]),
        ("seconds of work repeated", seen.repeated_seconds, [each.repeated_seconds for each in found]),
    )
    lines = [
        f"{units} units of {seconds:g} s, {slots} processes at once, {losses_per_hour:g} kills in an hour of each. "
        f"A new process worked {seen.replaced_after:.1f} s after a kill, and {calm.overhead_seconds:.2f} s lay between "
        "two units of one, on average; the simulation is given both. Without kills the stage took "
        f"{calm.seconds:.1f} s; {undisturbed:.1f} are predicted.",
        "",
        "| with kills | seen | predicted | nine of ten predictions |",
        "|---|---:|---:|---:|",
    ]
    for name, value, predicted in rows:
        cuts = statistics.quantiles(predicted, n=20)
        lines.append(f"| {name} | {value:.1f} | {statistics.median(predicted):.1f} | {cuts[0]:.1f} to {cuts[-1]:.1f} |")
    return lines


def run_stage(folder: Path, units: int, seconds: float, slots: int, losses_per_hour: float) -> Seen:
    """Run the units on Ray while processes are killed, after all processes were started."""
    work = Work.of(Step[SleepingUnit, Slept]("sleep", make_sleep))
    folder.mkdir()
    executor = RayExecutor(Resources())
    ready = Path(f"{folder}-ready")
    ready.mkdir()
    list(executor.run("warm", work, [SleepingUnit(f"warm{n}", str(ready), 1.0) for n in range(3 * slots)]))
    todo = [SleepingUnit(f"unit{n}", str(folder), seconds) for n in range(units)]
    started = time.time()
    with Killer(folder, losses_per_hour, 1) as killer:
        done = list(executor.run("sleep", work, todo))
    wall = time.time() - started
    if sorted(each.record for each in done) != sorted(each.record for each in todo):
        raise SystemExit("the stage did not return each unit once")
    repeated = sum(at - begin for _, begin, at in killer.lost)
    waits = replaced_after(folder, killer.lost)
    return Seen(wall, len(killer.lost), repeated, waits, overhead(folder, seconds))


def overhead(folder: Path, seconds: float) -> float:
    """Return the mean seconds between two units of a process."""
    begins: dict[int, list[float]] = {}
    for path in folder.iterdir():
        _, pid, begin = path.name.removesuffix(".done").rsplit("-", 2)
        begins.setdefault(int(pid), []).append(float(begin))
    gaps = [later - earlier - seconds for each in begins.values() for earlier, later in pairwise(sorted(each))]
    return statistics.mean(gaps) if gaps else 0.0


def replaced_after(folder: Path, lost: Sequence[tuple[int, float, float]]) -> float:
    """Return the mean seconds from a kill to the first unit that a new process begins."""
    begins: dict[int, float] = {}
    for path in folder.iterdir():
        _, pid, begin = path.name.removesuffix(".done").rsplit("-", 2)
        begins[int(pid)] = min(begins.get(int(pid), float("inf")), float(begin))
    fresh = sorted(begins.values())
    waits = []
    for _, _, killed in lost:
        later = [begin for begin in fresh if begin > killed]
        if later:
            waits.append(later[0] - killed)
            fresh.remove(later[0])
    return statistics.mean(waits) if waits else 0.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--units", type=int, default=60)
    parser.add_argument("--seconds", type=float, default=4.0)
    parser.add_argument("--slots", type=int, default=4, help="processes at once")
    parser.add_argument("--kills", type=float, default=180.0, help="in an hour of a process's work")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    put_report(check(options.units, options.seconds, options.slots, options.kills), options.out)


if __name__ == "__main__":
    main()
