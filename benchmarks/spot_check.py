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
from pathlib import Path

import ray

from benchmarks.spot import SleepingUnit, Slept, Stage, make_sleep, simulate
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


def check(units: int, seconds: float, slots: int, losses_per_hour: float) -> list[str]:
    """Return what was seen on a local Ray, and what the simulation predicts of it."""
    ray.init(num_cpus=slots, include_dashboard=False, logging_level="ERROR", log_to_driver=False)
    work = Work.of(Step[SleepingUnit, Slept]("sleep", make_sleep))
    rows = []
    with tempfile.TemporaryDirectory() as name:
        for rate in (0.0, losses_per_hour):
            folder = Path(name, f"{rate:g}")
            folder.mkdir()
            todo = [SleepingUnit(f"unit{n}", str(folder), seconds) for n in range(units)]
            executor = RayExecutor(Resources())
            list(executor.run("warm", work, [SleepingUnit(f"warm{n}", name, 0.1) for n in range(2 * slots)]))
            started = time.time()
            with Killer(folder, rate, 1) as killer:
                done = list(executor.run("sleep", work, todo))
            wall = time.time() - started
            assert sorted(each.record for each in done) == sorted(each.record for each in todo)
            rows.append((rate, wall, len(killer.lost), sum(at - begin for _, begin, at in killer.lost), killer.lost))
            back = replaced_after(folder, killer.lost)
    ray.shutdown()
    stage = [Stage("sleep", units, (rows[0][1] / units) * slots, 1)]
    predicted = [simulate(stage, slots, losses_per_hour, back, seed) for seed in range(400)]
    middle = statistics.median(each.seconds for each in predicted)
    lost = [each.lost_units for each in predicted]
    again = [each.repeated_seconds for each in predicted]
    (low, high), (lost_low, lost_high), (again_low, again_high) = (
        (cuts[0], cuts[-1])
        for cuts in (statistics.quantiles(each, n=20) for each in ([e.seconds for e in predicted], lost, again))
    )
    return [
        f"{units} units of {seconds:g} s, {slots} processes at once, {losses_per_hour:g} kills in an hour of each. "
        f"Without kills the stage took {rows[0][1]:.1f} s. The first new process worked {back:.1f} s after a kill, on "
        "average; the simulation is given both.",
        "",
        "| | seen | predicted | nine of ten predictions |",
        "|---|---:|---:|---:|",
        f"| seconds | {rows[1][1]:.1f} | {middle:.1f} | {low:.1f} to {high:.1f} |",
        f"| units lost | {rows[1][2]} | {statistics.median(lost):.0f} | {lost_low:.0f} to {lost_high:.0f} |",
        f"| seconds of work repeated | {rows[1][3]:.1f} | {statistics.median(again):.1f} | "
        f"{again_low:.1f} to {again_high:.1f} |",
    ]


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
    text = "\n".join(check(options.units, options.seconds, options.slots, options.kills))
    print(text)
    if options.out:
        options.out.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
