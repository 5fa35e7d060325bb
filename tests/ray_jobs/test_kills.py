"""A run whose driver and workers are killed again and again ends as if nothing had happened, and does nothing twice."""

import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import yaml

from dpr.errors import UnitError
from dpr.engine.stage import LocalExecutor
from dpr.nightly import run_recipe
from dpr.recipe import load_recipe
from dpr.formats.snapshots import live_snapshot, numbers
from dpr.store import LocalStore
from tests.ray_jobs.own_ray import OwnRay, own_ray
from tests.tiny import WORDS, Quiet, make_encoder, write_jsonl

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(900)]

STAGES = ("scan", "diff", "embed", "copy", "train", "build", "merge", "gate")
PLACES = ("start", *STAGES, "publish")
"""Where a driver can be; "start": before it holds the lease."""
KILLS_PER_STAGE = {
    "start": 1,
    "scan": 6,
    "diff": 2,
    "embed": 9,
    "copy": 3,
    "train": 2,
    "build": 5,
    "merge": 2,
    "gate": 2,
}
LEAST_KILLS = 25
SEED = 11

Victim = Literal["driver", "worker"]


@dataclass(frozen=True)
class Kill:
    """What to kill and when: so long after the driver is in `stage` and so many units of all have their record."""

    stage: str
    records: int
    stage_ends: int
    """Units that have their record when the stage is over: then it is too late, and the kill falls where it may."""
    delay_seconds: float
    victim: Victim


@dataclass
class Finished:
    """All units that were seen to be done, with the files they had made by then."""

    store: Path
    files: dict[Path, tuple[int, int]] = field(default_factory=dict)
    records: set[Path] = field(default_factory=set)

    def look(self) -> int:
        """How many units are done."""
        for record in record_files(self.store) - self.records:
            self.records.add(record)
            named = [self.store / ref["name"] for ref in json.loads(record.read_bytes())["objects"]]
            self.files |= {path: _identity(path) for path in (record, *named)}
        return len(self.records)

    def written_again(self) -> list[Path]:
        return [path for path, identity in self.files.items() if _identity(path) != identity]


def record_files(store: Path) -> set[Path]:
    folders = ("runs", "segments", "codebooks", "parts", "indexes", "truth")
    found = {path for folder in folders for path in (store / folder).rglob("*.json")}
    return {path for path in found if not path.name.startswith(".") and path.name != "report.json"}


def _identity(path: Path) -> tuple[int, int]:
    status = path.stat()
    return status.st_ino, status.st_mtime_ns


class Driver:
    """`python -m ray_jobs.nightly` in a process of its own."""

    def __init__(self, ray: OwnRay, recipe: Path, log: Path) -> None:
        self.log, self._store = log, recipe.parent / "store"
        command = [sys.executable, "-m", "ray_jobs.nightly", "--recipe", str(recipe)]
        with log.open("wb") as file:
            self.process = subprocess.Popen(command, stdout=file, stderr=file, env=ray.environment)

    def stage(self) -> str:
        """Where it is, by what it said and by who holds the lease."""
        finished = re.findall(r"^(\w+) +\d+ of \d+ units done now", self.log.read_text(), re.MULTILINE)
        if finished:
            return PLACES[PLACES.index(finished[-1]) + 1]
        claims = sorted((self._store / "lease").glob("*/00000001.json"))
        holds = claims and json.loads(claims[-1].read_bytes())["pid"] == self.process.pid
        return "scan" if holds else "start"


def draw_kills(store: Path) -> list[Kill]:
    """Kills spread over all stages of a run that made `store`."""
    rng = random.Random(SEED)
    counts = _records_per_stage(store)
    starts = [0, *np.cumsum(counts).tolist()]
    kills = [Kill("start", 0, 1, rng.uniform(0.0, 1.0), "driver") for _ in range(KILLS_PER_STAGE["start"])]
    for stage, (first, last) in zip(STAGES, pairwise(starts), strict=True):
        for number in range(KILLS_PER_STAGE[stage]):
            victim: Victim = "driver" if number % 3 == 0 else "worker"
            kills.append(Kill(stage, rng.randrange(first, last), last, rng.uniform(0.0, 0.2), victim))
    return sorted(kills, key=lambda kill: kill.records)


def _records_per_stage(store: Path) -> list[int]:
    (run,) = (store / "runs").iterdir()
    planned = json.loads((run / "changes.json").read_bytes())["facts"]["planned"]
    kinds = Counter(unit["kind"] for unit in planned)
    slices = len(list((run / "keys").glob("*.json")))
    return [slices, 1, kinds["embed"], kinds["copy"], 1, len(planned), 1, 1]


@dataclass
class Killer:
    """Runs a recipe, kills what the plan says, and starts the run again until it is done."""

    ray: OwnRay
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
        driver = Driver(self.ray, self.recipe, self.recipe.parent / f"driver-{self.drivers}.log")
        while driver.process.poll() is None:
            if not self.plan or not self._is_due(self.plan[0], driver):
                time.sleep(0.02)
                continue
            time.sleep(self.plan[0].delay_seconds)
            if self._kill(self.plan[0].victim, driver):
                del self.plan[0]
        self.finished.look()
        if driver.process.returncode == UnitError.exit_code:
            self.gave_up += 1
        elif driver.process.returncode not in (0, -signal.SIGKILL):
            pytest.fail(f"driver {self.drivers} ended with {driver.process.returncode}: {driver.log.read_text()}")
        return driver.process.returncode == 0

    def _is_due(self, kill: Kill, driver: Driver) -> bool:
        records = self.finished.look()
        there = PLACES.index(driver.stage()) >= PLACES.index(kill.stage)
        return records >= kill.records and (there or records >= kill.stage_ends)

    def _kill(self, victim: Victim, driver: Driver) -> bool:
        stage = driver.stage()
        if victim == "driver":
            driver.process.kill()
            driver.process.wait()
            self.kills["driver", stage] += 1
            return True
        workers = {} if stage == "start" else self.ray.workers()
        if not workers:
            return False  # the driver is not as far: look again
        pid = random.Random(len(self.plan)).choice(sorted(workers))
        os.kill(pid, signal.SIGKILL)
        self.kills[f"worker {workers[pid]}", stage] += 1
        return True


def write_recipe(folder: Path, encoder: Path) -> Path:
    folder.mkdir()
    rng = np.random.default_rng(3)
    corpus = {f"p{n}": " ".join(rng.choice(WORDS, rng.integers(3, 20))) for n in range(700)}
    corpus |= {f"copy{n}": corpus[f"p{7 * n}"] for n in range(80)}  # for units of kind copy
    write_jsonl(folder / "corpus.jsonl", corpus)
    asked = [{"question": corpus[f"p{n}"], "answers": [f"p{n}"]} for n in range(50)]
    (folder / "questions.jsonl").write_text("".join(json.dumps(question) + "\n" for question in asked))
    document = {
        "store": "store",
        "corpus": {"path": "corpus.jsonl", "format": "jsonl", "slice_bytes": 2500},
        "encoder": {"model": str(encoder), "pooling": "mean", "normalize": True, "title_join": "space"},
        "index": {"factory": "IVF16,PQ8x4"},
        "gate": {"questions": "questions.jsonl"},
        "resources": {"segment_rows": 20},
    }
    (folder / "recipe.yaml").write_text(yaml.safe_dump(document))
    return folder / "recipe.yaml"


def test_a_run_killed_at_every_turn_ends_in_the_same_snapshot(tmp_path: Path) -> None:
    encoder = make_encoder(tmp_path / "encoder")
    undisturbed = load_recipe(write_recipe(tmp_path / "undisturbed", encoder))
    expected = run_recipe(undisturbed, LocalExecutor(), Quiet()).snapshot
    recipe = write_recipe(tmp_path / "killed", encoder)
    store = tmp_path / "killed" / "store"
    started = time.monotonic()
    with own_ray() as ray:
        killer = Killer(ray, recipe, draw_kills(Path(undisturbed.store)), Finished(store))
        killer.until_done()
    for (victim, stage), count in sorted(killer.kills.items(), key=lambda item: item[0][1]):
        print(f"{count:3} × {victim} in {stage}")
    total = killer.kills.total()
    print(f"{total} kills, {killer.drivers} drivers, {killer.gave_up} gave up, {time.monotonic() - started:.0f} s")

    assert live_snapshot(LocalStore(store)).body_bytes() == expected.body_bytes()
    assert numbers(LocalStore(store)) == [1]
    assert killer.finished.written_again() == []
    assert len(killer.finished.records) == len(record_files(Path(undisturbed.store)))
    assert total >= LEAST_KILLS
    victims = Counter(victim.partition(" ")[0] for victim, _ in killer.kills.elements())
    assert min(victims["driver"], victims["worker"]) >= LEAST_KILLS // 3
    assert {"scan", "embed", "build"} <= {stage for _, stage in killer.kills}
