"""A night whose machines are taken back: a discrete simulation of hours and repeated work, and a check on a real Ray.

    python -m benchmarks.spot night --machines 16 --losses 0 0.05 0.2 1
    python -m benchmarks.spot check --out spot.md

A unit that is under way when its machine is lost is done again by another; a unit that has its record is not. So a loss
costs the units under way, and the time until a machine takes its place. `night` predicts a first night of a billion
passages, with the seconds of units of benchmarks/results/nights_h100x4_2026-11-27.md, fourth run. `--losses` are those
of one machine in an hour. `check` sends units that sleep through the product's own executor to a local Ray, kills the
processes at random while they work, and compares what the simulation predicts with what was seen.
"""

import argparse
import heapq
import os
import random
import signal
import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path

CORES, GPUS = 16, 1
"""Of a machine: a quarter of the host that was measured."""
SEEDS = 9
DOLLARS_PER_MACHINE_HOUR = 2.5


@dataclass(frozen=True)
class Stage:
    """Units of one stage."""

    name: str
    units: int
    seconds: float
    """Of one unit."""
    slots: int
    """Units that a machine does at once."""


def billion() -> list[Stage]:
    """Return the stages of a first night of 10^9 passages; each figure is a measured one of 21 million times 47.6."""
    units, slices = 20_000, 10_000
    return [
        Stage("scan", slices, 17.9 * 64 / 210, CORES),
        Stage(
            "diff", 256, 8.0, CORES // 8
        ),  # partitioned as in docs/scale.md, which is not built: 3.9 million keys each
        Stage("embed", units, 261.5 * 4 / 440, GPUS),
        Stage("train", 1, 9.8 * 4, GPUS),  # 65,536 lists, on as large a sample
        Stage("build", units, 8.6 * 4 / 440, GPUS),
        Stage("merge", 48, 13.4, 1),
        Stage("truth", units, 1.5 * 4 / 440, GPUS),
        Stage("gate", 1, 6.7 * 47.6, 1),  # reads the kept neighbours of all segments
    ]


class Machine:
    """When a machine is there: it is lost at random times, and another takes its place a while later."""

    def __init__(self, losses_per_hour: float, replaced_after: float, draw: random.Random) -> None:
        self._draw, self._replaced_after = draw, replaced_after
        self._rate = losses_per_hour / 3600.0
        self._losses: list[float] = []

    def up_at(self, now: float) -> float:
        """Return from when on it is there, `now` or later."""
        self.next_loss(now)
        return max([now, *(loss + self._replaced_after for loss in self._losses[-3:-1] if loss <= now)])

    def next_loss(self, now: float) -> float:
        """Return when it is lost next."""
        if self._rate == 0.0:
            return float("inf")
        while not self._losses or self._losses[-1] <= now:
            begin = self._losses[-1] + self._replaced_after if self._losses else 0.0
            self._losses.append(begin + self._draw.expovariate(self._rate))
        return self._losses[-1]


@dataclass(frozen=True)
class Outcome:
    """What a simulated night took."""

    seconds: float
    repeated_seconds: float
    """Of units whose machine was lost."""
    lost_units: int
    stages: dict[str, float]


def simulate(
    stages: Sequence[Stage], machines: int, losses_per_hour: float, replaced_after: float, seed: int = 0
) -> Outcome:
    """Simulate the stages one after another on some machines."""
    draw = random.Random(seed)
    fleet = [Machine(losses_per_hour, replaced_after, draw) for _ in range(machines)]
    now, repeated, lost, seconds = 0.0, 0.0, 0, dict[str, float]()
    for stage in stages:
        end, more, units = _run_stage(stage, fleet, now)
        seconds[stage.name] = end - now
        now, repeated, lost = end, repeated + more, lost + units
    return Outcome(now, repeated, lost, seconds)


def _run_stage(stage: Stage, fleet: Sequence[Machine], start: float) -> tuple[float, float, int]:
    """Return when a stage ends, the seconds of units that were lost, and how many these were."""
    order = count()
    waiting = [start] * stage.units  # when each unit can begin
    slots = [(start, next(order), machine) for machine in fleet for _ in range(stage.slots)]
    heapq.heapify(slots)
    end, repeated, lost = start, 0.0, 0
    while waiting:
        free, _, machine = heapq.heappop(slots)
        begin = waiting[0] if waiting[0] > free else machine.up_at(free)
        if begin > free:  # there is no unit or no machine yet: others come first
            heapq.heappush(slots, (begin, next(order), machine))
            continue
        heapq.heappop(waiting)
        loss = machine.next_loss(begin)
        if loss < begin + stage.seconds:
            repeated, lost = repeated + loss - begin, lost + 1
            heapq.heappush(waiting, loss)
            free = loss
        else:
            free = begin + stage.seconds
            end = max(end, free)
        heapq.heappush(slots, (free, next(order), machine))
    return end, repeated, lost


def night(machines: int, losses: Sequence[float], replaced_after: float) -> list[str]:
    """Return a table of nights of a billion passages, by how often a machine is lost."""
    stages = billion()
    busy = sum(stage.units * stage.seconds / stage.slots for stage in stages) / 3600
    lines = [
        f"{machines} machines of {CORES} cores and an H100, at {DOLLARS_PER_MACHINE_HOUR} dollars an hour; one that is "
        f"lost is replaced after {replaced_after:.0f} s. Without losses, the units take {busy:,.1f} machine-hours. Medians "
        f"of {SEEDS} seeds; at most: the worst of them.",
        "",
        "| losses of a machine an hour | hours | at most | units lost | hours repeated | share of the work | dollars |",
        "|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for rate in losses:
        found = [simulate(stages, machines, rate, replaced_after, seed) for seed in range(SEEDS if rate else 1)]
        hours = [each.seconds / 3600 for each in found]
        repeated = statistics.median(each.repeated_seconds for each in found) / 3600
        middle = statistics.median(hours)
        lines.append(
            f"| {rate:g} | {middle:.2f} | {max(hours):.2f} | {statistics.median(e.lost_units for e in found):.0f} | "
            f"{repeated:.3f} | {repeated / busy:.2%} | {middle * machines * DOLLARS_PER_MACHINE_HOUR:,.0f} |"
        )
    calm = simulate(stages, machines, 0.0, 0.0)
    lines += ["", "| stage | units | seconds of a unit | minutes without losses |", "|---|---:|---:|---:|"]
    lines += [f"| {s.name} | {s.units:,} | {s.seconds:.3g} | {calm.stages[s.name] / 60:.1f} |" for s in stages]
    return lines


@dataclass(frozen=True)
class SleepingUnit:
    """A unit that waits, and says in a file that it does."""

    record: str
    folder: str
    seconds: float
    rows: int = 1
    read_bytes: int = 0


@dataclass(frozen=True)
class Slept:
    """The result of a unit that waited."""

    record: str


class Sleep:
    """The step of a unit that waits."""

    def __call__(self, unit: SleepingUnit) -> Slept:
        begin = time.time()
        path = Path(unit.folder, f"{unit.record}-{os.getpid()}-{begin:.3f}")
        path.touch()
        time.sleep(unit.seconds)
        path.rename(path.with_suffix(path.suffix + ".done"))
        return Slept(unit.record)


def make_sleep() -> Callable[[SleepingUnit], Slept]:
    return Sleep()


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
    import ray

    from dpr.engine.stage import Step, Work
    from dpr.recipe import Resources
    from ray_jobs.ray_executor import RayExecutor

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
        f"{units} units of {seconds:g} s, {slots} processes at once, {losses_per_hour:g} kills in an hour of a process. "
        f"Without kills the stage took {rows[0][1]:.1f} s; a killed process was replaced after {back:.1f} s on average, "
        "which the simulation is given, as it is given the time without kills.",
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
    parser.add_argument("part", choices=("night", "check"))
    parser.add_argument("--machines", type=int, default=16)
    parser.add_argument("--losses", type=float, nargs="+", default=[0.0, 0.05, 0.2, 1.0])
    parser.add_argument("--replaced-after", type=float, default=300.0, help="seconds until a lost machine is replaced")
    parser.add_argument("--units", type=int, default=60)
    parser.add_argument("--seconds", type=float, default=4.0)
    parser.add_argument("--slots", type=int, default=4)
    parser.add_argument("--kills", type=float, default=180.0, help="in an hour of a process's work")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    if options.part == "night":
        lines = night(options.machines, options.losses, options.replaced_after)
    else:
        lines = check(options.units, options.seconds, options.slots, options.kills)
    print("\n".join(lines))
    if options.out:
        options.out.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
