"""Simulated processes: nightly runs, started again until they succeed, and other processes beside them."""

from collections.abc import Callable
from dataclasses import dataclass, field

from dpr.errors import ConflictError, DprError, GateError, IntegrityError, MissingObjectError, RecipeError
from dpr.formats.objects import read_object
from dpr.formats.snapshots import numbers, open_snapshot
from dpr.operations.gc import collect
from dpr.operations.rollback import rollback
from dpr.run import Plan
from dpr.run_recipe import Outcome, finished_run, run_plan
from dpr.store.lease import Lease
from simulation.corpora import Kind, Version, recipe_of
from simulation.faults import Weather
from simulation.world import Ended, OneThread, Silent, World, is_injected

MAX_ATTEMPTS = 60


@dataclass
class Driver:
    """Somebody who wants a corpus to be live, and starts the run again after any failure."""

    machine: str
    version: Version
    kind: Kind
    pids: list[int] = field(default_factory=list)
    outcomes: dict[int, Outcome] = field(default_factory=dict)
    """Process → how its run ended."""
    refused: bool = False
    """Whether the gate refused to publish."""

    def start(self, world: World, after: float, wait: Callable[[], float]) -> None:
        """Start the first attempt after some seconds; later ones follow `wait()` seconds after the end of the last."""

        def ended(how: Ended) -> None:
            self.refused |= isinstance(how.error, GateError)
            note_error(world, how, ConflictError, GateError if self.kind == "demanding" else ConflictError)
            if how.how in ("well", "bug") or self.refused:
                return
            if len(self.pids) < MAX_ATTEMPTS:
                self.start(world, wait(), wait)
            else:
                world.violations.append(f"the run of {self.version} on {self.machine} did not succeed in 60 attempts")

        process = world.start(
            self.machine, f"run of corpus {self.version}", lambda url: self._run(world, url), after, ended
        )
        self.pids.append(process.pid)

    def _run(self, world: World, url: str) -> None:
        plan = Plan.of(recipe_of(self.kind, self.version, url))
        lease_seconds = world.weather.lease_seconds
        outcome = finished_run(plan) or run_plan(plan, OneThread(), Silent(), lease_seconds=lease_seconds)
        self.outcomes[world.machine.process.pid] = outcome


def note_error(world: World, how: Ended, *allowed: type[DprError]) -> None:
    """Note a violation if a process ended with an error that nothing explains."""
    error = how.error
    if error is None or is_injected(error) or isinstance(error, allowed):
        return
    if world.objects.deleted and isinstance(error, MissingObjectError):
        return  # a run that lost its lease meets what was collected
    world.violations.append(
        f"{how.process.what} (process {how.process.pid}) ended with {type(error).__name__}: {error}"
    )


def start_rollback(world: World, after: float, which: int) -> None:
    """Start a rollback to one of the older snapshots."""

    def work(url: str) -> None:
        store = world.open_store(url)
        older = numbers(store)[:-1]
        if older:
            rollback(store, older[which % len(older)])

    world.start("operator", "rollback", work, after, lambda how: note_error(world, how, ConflictError, RecipeError))


def start_rollback_to(world: World, after: float, number: int) -> None:
    """Start a rollback to a snapshot."""

    def work(url: str) -> None:
        rollback(world.open_store(url), number)

    world.start("operator", "rollback", work, after)


def start_collection(world: World, after: float, keep: int, weather: Weather) -> None:
    """Start garbage collection."""

    def work(url: str) -> None:
        store = world.open_store(url)
        with Lease.acquire(store, "gc", weather.lease_seconds, deletes=True) as lease:
            collect(store, keep, lease)

    world.start("operator", "gc", work, after, lambda how: note_error(world, how, ConflictError))


def start_reader(world: World, after: float, reads_for: float) -> None:
    """Start a reader of the live snapshot, which takes its time."""

    def work(url: str) -> None:
        store = world.open_store(url)
        if not numbers(store):
            return
        snapshot, marker = open_snapshot(store)
        with marker:
            world.scheduler.sleep(reads_for)
            for ref in snapshot.body.objects():
                try:
                    read_object(store, ref)
                except (MissingObjectError, IntegrityError) as error:
                    if marker.name in world.objects.stored:
                        world.violations.append(f"a reader of snapshot {snapshot.number} met {error}")

    # a snapshot may be collected before its reader has a marker
    world.start("reader", "reader", work, after, lambda how: note_error(world, how, MissingObjectError))
