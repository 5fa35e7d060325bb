"""A run whose driver and workers are killed again and again ends as if nothing had happened, and does nothing twice."""

import json
import os
import random
import re
import signal
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Literal

import numpy as np
import pytest

from dpr.engine.executor import LocalExecutor
from dpr.engine.stage import A, B, Work
from dpr.errors import UnitError
from dpr.formats.snapshots import live_snapshot, numbers
from tests.collection import Collection
from tests.ray_jobs.forked import Forks
from tests.ray_jobs.own_ray import OwnRay
from tests.tiny import random_texts

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

Victim = Literal["driver", "worker"]
KILLS: dict[str, tuple[Victim, ...]] = {
    "start": ("driver",),
    "scan": ("driver", "worker"),
    "diff": ("worker",),
    "embed": ("driver", "worker"),
    "copy": ("worker",),
    "train": ("driver",),
    "build": ("driver", "worker"),
    "merge": ("worker",),
    "invert": (),  # the embed stage writes the words
    "questions": ("worker",),
    "truth": ("driver",),
    "gate": ("worker",),
    "modes": ("driver",),
}
"""Stage → processes to kill in it: both where there are many units, as tasks or as a dataset, otherwise alternately.

A driver that fails in any stage is proven to do no harm by tests/test_run_recipe.py, at every call of its store.
"""
STAGES = tuple(KILLS)[1:]
PLACES = ("start", *STAGES, "publish")
"""Where a driver can be; "start": before it holds the lease."""
MIN_KILLS = 12
SEED = 11


@dataclass(frozen=True)
class Kill:
    """What to kill and when: `delay_seconds` after the driver is in `stage` and `records` units are done."""

    stage: str
    records: int
    stage_ends: int
    """Units that are done when the stage is over: then it is too late for this stage, and the kill falls in another."""
    delay_seconds: float
    victim: Victim


class CountingExecutor(LocalExecutor):
    """Counts the units of each stage."""

    def __init__(self) -> None:
        self.units: Counter[str] = Counter()

    def run(self, stage: str, work: Work[A, B], units: Sequence[A]) -> Iterator[B]:
        self.units[stage] += len(units)
        return super().run(stage, work, units)


@dataclass
class Finished:
    """All units that were seen to be done, with the files that they had made by then."""

    store: Path
    files: dict[Path, tuple[int, int]] = field(default_factory=dict)
    records: set[Path] = field(default_factory=set)

    def look(self) -> int:
        """Return how many units are done."""
        for record in record_files(self.store) - self.records:
            self.records.add(record)
            named = [self.store / name for name in object_names(json.loads(record.read_bytes()))]
            self.files |= {path: _identity(path) for path in (record, *named)}
        return len(self.records)

    def written_again(self) -> list[Path]:
        """Return the files that are not what they were when they were first seen."""
        return [path for path, identity in self.files.items() if _identity(path) != identity]


def record_files(store: Path) -> set[Path]:
    """Return the files of all records of units."""
    folders = ("scans", "runs", "segments", "codebooks", "parts", "lexical", "indexes", "truth")
    found = {path for folder in folders for path in (store / folder).rglob("*.json")}
    others = {path for path in found if path.name in ("plan.json", "report.json") or path.parent.name == "reports"}
    return {path for path in found - others if not path.name.startswith(".")}


def object_names(document: object) -> Iterator[str]:
    """Yield the names of all objects that a document refers to."""
    if isinstance(document, dict):
        if {"name", "sha256", "size_bytes"} == document.keys():
            yield document["name"]
        document = list(document.values())
    if isinstance(document, list):
        for value in document:
            yield from object_names(value)


def _identity(path: Path) -> tuple[int, int]:
    status = path.stat()
    return status.st_ino, status.st_mtime_ns


class Driver:
    """The nightly job in a process of its own."""

    def __init__(self, drivers: Forks, recipe: Path, log: Path) -> None:
        self._store = recipe.parent / "store"
        self.process = drivers.start(log, "ray_jobs.nightly", "--recipe", recipe)

    def stage(self) -> str:
        """Return where it is, by its progress and by who holds the lease."""
        finished = re.findall(r"^(\w+) +\d+ of \d+ units done now", self.process.errors(), re.MULTILINE)
        if finished:
            return PLACES[PLACES.index(finished[-1]) + 1]
        claims = sorted((self._store / "lease").glob("*/00000001.json"))
        holds = claims and json.loads(claims[-1].read_bytes())["pid"] == self.process.pid
        return "scan" if holds else "start"


def draw_kills(units: Counter[str]) -> list[Kill]:
    """Return kills spread over all stages of a run with these numbers of units."""
    rng = random.Random(SEED)
    starts = [0, *np.cumsum([units[stage] for stage in STAGES]).tolist()]
    kills = [Kill("start", 0, 1, rng.uniform(0.0, 1.0), victim) for victim in KILLS["start"]]
    for stage, (first, last) in zip(STAGES, pairwise(starts), strict=True):
        half = (first + last + 1) // 2  # after the first half of its units, a quick stage may be over before the kill
        kills += [
            Kill(stage, rng.randrange(first, half), last, rng.uniform(0.0, 0.2), victim) for victim in KILLS[stage]
        ]
    return sorted(kills, key=lambda kill: kill.records)


@dataclass
class Killer:
    """Runs a recipe, kills what the plan says, and starts the run again until it is done."""

    ray: OwnRay
    forks: Forks
    recipe: Path
    plan: list[Kill]
    finished: Finished
    kills: Counter[tuple[str, str]] = field(default_factory=Counter)
    drivers: int = 0
    gave_up: int = 0
    """Drivers that ended by themselves because Ray could not replace a lost worker."""

    def until_done(self) -> None:
        while not self._driver_finished():
            pass

    def _driver_finished(self) -> bool:
        self.drivers += 1
        driver = Driver(self.forks, self.recipe, self.recipe.parent / f"driver-{self.drivers}")
        while (code := driver.process.poll()) is None:
            if not self.plan or not self._is_due(self.plan[0], driver):
                time.sleep(0.05)  # each look reads the names of all records
                continue
            time.sleep(self.plan[0].delay_seconds)
            if self._kill(self.plan[0].victim, driver):
                del self.plan[0]
        self.finished.look()
        if code == UnitError.exit_code:
            self.gave_up += 1
        elif code not in (0, -signal.SIGKILL):
            pytest.fail(f"driver {self.drivers} ended with {code}: {driver.process.errors()}")
        return code == 0

    def _is_due(self, kill: Kill, driver: Driver) -> bool:
        records = self.finished.look()
        there = PLACES.index(driver.stage()) >= PLACES.index(kill.stage)
        return records >= kill.records and (there or records >= kill.stage_ends)

    def _kill(self, victim: Victim, driver: Driver) -> bool:
        stage = driver.stage()
        if victim == "driver":
            driver.process.kill()
            self.kills["driver", stage] += 1
            return True
        workers = {} if stage == "start" else self.ray.workers()
        if not workers:
            return False  # the driver is not as far: look again
        pid = random.Random(len(self.plan)).choice(sorted(workers))
        os.kill(pid, signal.SIGKILL)
        self.kills[f"worker {workers[pid]}", stage] += 1
        return True


def make_collection(folder: Path, static_encoder: Path) -> Collection:
    """Make a collection with several units in every stage that can have them."""
    corpus = random_texts(700, seed=3, max_words=20)
    corpus |= {f"copy{n}": corpus[f"p{7 * n:03d}"] for n in range(80)}  # for units of kind copy
    questions = [{"question": corpus[f"p{n:03d}"], "answers": [f"p{n:03d}"]} for n in range(50)]
    folder.mkdir()
    (folder / "questions.jsonl").write_text("".join(json.dumps(question) + "\n" for question in questions))
    made = Collection(folder, static_encoder, corpus, index={"factory": "IVF16,PQ8x4"})
    made.change(corpus={"slice_bytes": 1000}, gate={"questions": str(folder / "questions.jsonl")})
    return made


def test_a_run_killed_in_every_stage_ends_in_the_same_snapshot(
    lasting_ray: OwnRay, drivers: Forks, tmp_path: Path, static_encoder: Path
) -> None:
    undisturbed, killed = (make_collection(tmp_path / name, static_encoder) for name in ("undisturbed", "killed"))
    counting = CountingExecutor()
    expected = undisturbed.night(counting).snapshot
    assert counting.units.keys() == set(STAGES)
    records = counting.units
    started = time.monotonic()
    finished = Finished(Path(killed.recipe.store))
    killer = Killer(lasting_ray, drivers, killed.write_recipe(), draw_kills(records), finished)
    killer.until_done()
    for (victim, stage), count in sorted(killer.kills.items(), key=lambda item: item[0][1]):
        print(f"{count:3} × {victim} in {stage}")
    total = killer.kills.total()
    print(f"{total} kills, {killer.drivers} drivers, {killer.gave_up} gave up, {time.monotonic() - started:.0f} s")

    assert live_snapshot(killed.store).body.to_bytes() == expected.body.to_bytes()
    assert numbers(killed.store) == [1]
    assert killer.finished.written_again() == []
    assert len(killer.finished.records) == len(record_files(Path(undisturbed.recipe.store))) == records.total()
    assert total >= MIN_KILLS
    victims = Counter(victim.partition(" ")[0] for victim, _ in killer.kills.elements())
    assert min(victims["driver"], victims["worker"]) >= MIN_KILLS // 3
    assert {"scan", "embed", "build"} <= {stage for _, stage in killer.kills}
