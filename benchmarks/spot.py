"""A night whose machines are taken back: a discrete simulation of its hours and of the work that is repeated.

    python -m benchmarks.spot --machines 16 --losses 0 0.05 0.2 1

A unit that is under way when its machine is lost is done again by another; a unit that has its record is not. So a loss
costs the units under way, and the time until another machine takes the place of the lost one. Simulated is a first
night of a billion passages. The seconds of its units are those of benchmarks/results/nights_h100x4_2026-11-27.md, its
fourth run. `--losses` are those of one machine in an hour. spot_check.py compares such a prediction with a real Ray.
"""

import argparse
import heapq
import os
import random
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path

CORES, GPUS = 16, 1
"""Of a machine: a quarter of the host that was measured."""
SEEDS = 9


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
        Stage("build", units, 8.6 * 4 / 440 * 4, GPUS),  # at most: four times as many lists to compare a passage with
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


def night(machines: int, losses: Sequence[float], replaced_after: float, dollars: float) -> list[str]:
    """Return a table of nights of a billion passages, by how often a machine is lost."""
    stages = billion()
    busy = sum(stage.units * stage.seconds / stage.slots for stage in stages) / 3600
    lines = [
        f"{machines} machines of {CORES} cores and an H100, at {dollars:g} dollars an hour. A lost one is replaced "
        f"after {replaced_after:.0f} s. Without losses, the units take {busy:,.1f} machine-hours. Medians of {SEEDS} "
        "seeds; at most: the worst of them.",
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
            f"{repeated:.3f} | {repeated / busy:.2%} | {middle * machines * dollars:,.0f} |"
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


def put_report(lines: Sequence[str], out: Path | None) -> None:
    """Print a report, and write it to a file if one is named."""
    text = "\n".join(lines)
    print(text)
    if out is not None:
        out.write_text(text + "\n", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--machines", type=int, default=16)
    parser.add_argument("--losses", type=float, nargs="+", default=[0.0, 0.05, 0.2, 1.0])
    parser.add_argument("--replaced-after", type=float, default=300.0, help="seconds until a lost machine is replaced")
    parser.add_argument("--dollars", type=float, default=2.5, help="what a machine costs an hour: an assumption")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    put_report(night(options.machines, options.losses, options.replaced_after, options.dollars), options.out)


if __name__ == "__main__":
    main()
