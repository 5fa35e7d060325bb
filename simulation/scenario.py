"""A night of one seed: what is drawn, what is run, and what must hold afterwards."""

import random
from dataclasses import dataclass, replace
from pathlib import Path

from dpr.formats.manifest import Snapshot
from simulation.actors import Driver, start_collection, start_reader, start_rollback
from simulation.corpora import VERSIONS, Kind, Version, texts_of
from simulation.faults import Weather
from simulation.invariants import Watch, missing_objects, snapshots_of, wrong_rows
from simulation.undisturbed import History, Night, Rollback, Undisturbed
from simulation.world import OTHER_MACHINE, World

STARTS: tuple[tuple[Version, ...], ...] = ((), ((0, 0),), ((0, 0), (1, 1)))
"""Nights that lie behind."""
DAYS_AGO = 3 * 86_400.0
"""When they were: long enough ago for their leftovers to be collected."""


@dataclass(frozen=True)
class Scenario:
    """Everything that a seed decides, except what happens to each call."""

    seed: int
    kind: Kind
    weather: Weather
    start: tuple[Version, ...]
    version: Version
    rival: Version | None
    """The corpus of a second run beside the first; None: there is none."""
    rival_after: float
    rival_demands: bool
    """Whether the gate of the second run refuses everything."""
    nudged: bool
    """Whether the vectors of the second run differ in the last bit, as on other hardware."""
    rollback_after: float | None
    collect_after: float | None
    reader_after: float | None

    @classmethod
    def drawn(cls, seed: int) -> "Scenario":
        """Draw the scenario of a seed."""
        draw = random.Random(f"scenario of {seed}")
        weather = Weather.drawn(draw)
        night_seconds = 300 * weather.call_seconds
        version, rival = draw.choice(VERSIONS), draw.choice(VERSIONS)
        has_rival, same = draw.random() < 0.6, draw.random() < 0.5

        def sometimes(share: float) -> float | None:
            after = draw.uniform(0.0, 2.0 * night_seconds)
            return after if draw.random() < share else None

        return cls(
            seed=seed,
            kind=draw.choice(("loose", "shards")),
            weather=weather,
            start=draw.choice(STARTS),
            version=version,
            rival=(version if same else rival) if has_rival else None,
            rival_after=draw.uniform(0.0, night_seconds),
            rival_demands=draw.random() < 0.15,
            nudged=draw.random() < 0.3,
            rollback_after=sometimes(0.2),
            collect_after=sometimes(0.2),
            reader_after=sometimes(0.3),
        )


@dataclass(frozen=True)
class Found:
    """What a simulated night showed."""

    seed: int
    digest: str
    """Of all calls, with their times and faults: equal for equal histories."""
    violations: tuple[str, ...]
    calls: int
    faults: int
    attempts: int
    published: int
    trace: tuple[str, ...]

    def without_trace(self) -> "Found":
        """Return the same without its calls, which are many."""
        return replace(self, trace=())


class Simulator:
    """Runs seeds; what undisturbed nights gave is kept from seed to seed."""

    def __init__(self, caches: Path, *, tracebacks: bool = False) -> None:
        self._caches, self._undisturbed, self._tracebacks = caches, Undisturbed(caches), tracebacks
        self._sound: set[tuple[str, Version]] = set()
        """Bodies whose content was checked, with their corpus."""

    def prepare(self, seed: int) -> None:
        """Run the undisturbed nights that a seed begins with, so that later changes to the product do not meet them."""
        scenario = Scenario.drawn(seed)
        self._undisturbed.store(scenario.kind, tuple(map(Night, scenario.start)))

    def run(self, seed: int) -> Found:
        """Simulate the night of a seed and check all that must hold."""
        scenario = Scenario.drawn(seed)
        history: History = tuple(Night(version) for version in scenario.start)
        world = World(seed, scenario.weather, scenario.kind, self._caches, nudged=scenario.nudged)
        world.tracebacks = self._tracebacks
        world.objects.adopt(self._undisturbed.store(scenario.kind, history), older_by=DAYS_AGO)
        drivers = _start(world, scenario)
        first = len(scenario.start) + 1
        Watch(world, lambda pid, _: any(pid in driver.pids and driver.kind != "demanding" for driver in drivers))
        world.run()
        self._check_end(world, scenario, drivers)
        faults = sum(line.endswith("]") for line in world.trace)
        snapshots = snapshots_of(world.objects)
        return Found(
            seed=seed,
            digest=world.digest(),
            violations=tuple(dict.fromkeys(world.violations)),
            calls=sum(process.calls for process in world.processes.values()),
            faults=faults,
            attempts=sum(len(driver.pids) for driver in drivers),
            published=sum(number >= first for number in snapshots),
            trace=tuple(world.trace),
        )

    def _check_end(self, world: World, scenario: Scenario, drivers: list[Driver]) -> None:
        snapshots = snapshots_of(world.objects)
        problems = world.violations
        for number, snapshot in snapshots.items():
            problems += [f"snapshot {number}, {problem}" for problem in missing_objects(world.objects, snapshot)]
        versions = _versions(world, scenario, drivers)
        for driver in drivers:
            problems += _wrong_outcomes(driver, world, snapshots, versions)
        for number, version in versions.items():
            if number in snapshots:
                problems += self._wrong_content(world, number, snapshots[number], version)
        if not world.objects.deleted:
            if sorted(snapshots) != list(range(1, len(snapshots) + 1)):
                problems.append(f"the numbers of snapshots have gaps: {sorted(snapshots)}")
            if not scenario.nudged:
                problems += self._other_bodies(scenario, snapshots, versions)

    def _wrong_content(self, world: World, number: int, snapshot: Snapshot, version: Version) -> list[str]:
        key = snapshot.body.body_id(), version
        if key in self._sound:
            return []
        problems = [
            f"snapshot {number} {problem}" for problem in wrong_rows(world.objects, snapshot, texts_of(version))
        ]
        if not problems:
            self._sound.add(key)
        return problems

    def _other_bodies(
        self, scenario: Scenario, snapshots: dict[int, Snapshot], versions: dict[int, Version]
    ) -> list[str]:
        """Return which snapshots differ from those of the undisturbed history."""
        history: History = ()
        problems = []
        for number in sorted(snapshots):
            note = snapshots[number].note
            history += (Rollback(int(note.rpartition(" ")[2])) if note else Night(versions[number]),)
            if number <= len(scenario.start):
                continue
            if snapshots[number].body.to_bytes() != self._undisturbed.body(scenario.kind, history):
                problems.append(f"snapshot {number} has another body than after the undisturbed history {history}")
                break
        return problems


def _versions(world: World, scenario: Scenario, drivers: list[Driver]) -> dict[int, Version]:
    """Return the corpus that each snapshot should hold, those that were collected included."""
    versions = dict(enumerate(scenario.start, start=1))
    by_pid = {pid: driver.version for driver in drivers for pid in driver.pids}
    for number, pid in sorted(world.publishers.items()):
        if number > len(scenario.start):
            note = world.notes[number]
            versions[number] = versions[int(note.rpartition(" ")[2])] if note else by_pid[pid]
    return versions


def _start(world: World, scenario: Scenario) -> list[Driver]:
    """Start all processes of a scenario."""
    draw = random.Random(f"waits of {scenario.seed}")
    wait = lambda: draw.uniform(0.1, scenario.weather.lease_seconds)  # noqa: E731
    drivers = [Driver("main", scenario.version, scenario.kind)]
    drivers[0].start(world, 0.0, wait)
    if scenario.rival is not None:
        kind: Kind = "demanding" if scenario.rival_demands else scenario.kind
        drivers.append(Driver(OTHER_MACHINE, scenario.rival, kind))
        drivers[1].start(world, scenario.rival_after, wait)
    if scenario.rollback_after is not None:
        start_rollback(world, scenario.rollback_after, draw.randrange(10))
    if scenario.collect_after is not None:
        start_collection(world, scenario.collect_after, draw.choice((1, 2)), scenario.weather)
    if scenario.reader_after is not None:
        start_reader(world, scenario.reader_after, draw.uniform(0.0, 600 * scenario.weather.call_seconds))
    night_seconds = 300 * scenario.weather.call_seconds
    for _ in range(scenario.weather.clock_steps):
        world.step_clock(draw.uniform(0.0, night_seconds), draw.choice(("store", "main")), draw.uniform(-900.0, 900.0))
    return drivers


def _wrong_outcomes(
    driver: Driver, world: World, snapshots: dict[int, Snapshot], versions: dict[int, Version]
) -> list[str]:
    """Return in what the outcomes of a driver's runs are not true."""
    problems = []
    if not driver.outcomes and not driver.refused:
        problems.append(f"no run of {driver.version} on {driver.machine} ended well")
    if driver.kind == "demanding" and not driver.refused and any(o.published for o in driver.outcomes.values()):
        problems.append("a gate that refuses everything let a run publish")
    for pid, outcome in driver.outcomes.items():
        number = outcome.snapshot.number
        if outcome.published and world.publishers.get(number) != pid:
            problems.append(f"process {pid} was told that it published {number}, and did not")
        if number in snapshots and snapshots[number] != outcome.snapshot:
            problems.append(f"process {pid} was given another snapshot {number} than there is")
        if versions.get(number, driver.version) != driver.version:
            problems.append(f"process {pid} was told that {number} holds its corpus, and it holds another")
    return problems
