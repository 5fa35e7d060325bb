"""A simulated world: one store, and processes on several machines that work on it."""

import contextlib
import hashlib
import itertools
import random
import shutil
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal
from unittest.mock import patch

import numpy as np
import numpy.typing as npt

from dpr.engine.executor import Cluster, LocalExecutor
from dpr.errors import DprError, StoreError
from dpr.index.hardware import Hardware
from dpr.store import Store
from simulation.corpora import DIM, Kind
from simulation.faults import Faults, Weather
from simulation.faulty import FaultyStore
from simulation.key_vectors import vectors_from_keys
from simulation.machine import Machine
from simulation.objects import Objects
from simulation.scheduler import EndlessError, Killed, Process, Scheduler

CALM = Weather(lease_seconds=60.0, call_seconds=1e-6, fault_rate=0.0, faults=0, clock_steps=0)
"""The weather of an undisturbed night."""
OTHER_MACHINE = "other"
"""The machine whose vectors differ in the last bit, where a scenario wants that."""
_worlds = itertools.count()


class OneThread(LocalExecutor):
    """Runs units in the simulated process, on one thread."""

    def hardware(self) -> Hardware:
        return Hardware(threads=1)

    def cluster(self) -> Cluster:
        return Cluster(cpus=1, encoders=1, gpus_per_encoder=0.0, overlap=False)

    def tokenizer_threads(self) -> int:
        return 1


class Silent:
    """Progress that shows nothing."""

    def start(self, stage: str, total_rows: int, done_rows: int) -> None: ...

    def advance(self, rows: int, detail: str = "") -> None: ...

    def message(self, topic: str, text: str) -> None: ...

    def finish(self, summary: str) -> None: ...


@dataclass(frozen=True)
class Ended:
    """How a simulated process ended."""

    process: Process
    how: Literal["well", "killed", "error", "bug"]
    error: DprError | None = None


class World:
    """A store, its processes, and what is known of them."""

    def __init__(self, seed: int, weather: Weather, kind: Kind, caches: Path, *, nudged: bool = False) -> None:
        self.weather, self.kind, self._nudged = weather, kind, nudged
        self.scheduler = Scheduler()
        self.objects = Objects(lambda: self.scheduler.now)
        self.faults = Faults(weather, random.Random(f"faults of {seed}"))
        self._place = f"simulated/{next(_worlds)}"  # what the product keeps by a store's URL is of this world alone
        self._caches = caches / self._place
        self.machine = Machine(self.scheduler, seed, self.open_store, self._caches)
        self.processes: dict[int, Process] = {}
        self.publishers: dict[int, int] = {}
        """Snapshot → the process that published it."""
        self.notes: dict[int, str] = {}
        """Snapshot → its note, which says whether it is a rollback."""
        self.clock_stepped = False
        self.trace: list[str] = []
        self.tracebacks = False
        """Whether a violation says where in the code it happened."""

    @property
    def violations(self) -> list[str]:
        return self.objects.violations

    def open_store(self, url: str) -> Store:
        """Return the way of a process to the store: its number is the end of the URL."""
        return FaultyStore(url, self.objects, self.scheduler, self.faults, self.note)

    def note(self, text: str) -> None:
        """Add a line to the trace."""
        self.trace.append(f"{self.scheduler.now:.6f} {text}")

    def digest(self) -> str:
        """Return a digest of all that happened."""
        return hashlib.sha256("\n".join(self.trace).encode()).hexdigest()[:16]

    def start(
        self,
        machine: str,
        what: str,
        work: Callable[[str], None],
        after: float = 0.0,
        then: Callable[[Ended], None] | None = None,
    ) -> Process:
        """Start a process after some seconds; `work` gets the URL of its store."""
        process = Process(len(self.processes) + 1, machine, what)
        self.processes[process.pid] = process
        self.scheduler.start(process, lambda: self._main(process, work, then), after)
        return process

    def _main(self, process: Process, work: Callable[[str], None], then: Callable[[Ended], None] | None) -> None:
        self.note(f"{process.pid} starts: {process.what} on {process.machine}")
        ended = Ended(process, "well")
        try:
            work(f"/{self._place}/{process.pid}")
        except Killed:
            ended = Ended(process, "killed")
        except DprError as error:
            ended = Ended(process, "error", error)
        except Exception as error:
            ended = Ended(process, "bug")
            where = "".join(traceback.format_exception(error)) if self.tracebacks else ""
            what = f"{type(error).__name__}: {error}{where}"
            self.violations.append(f"process {process.pid} ({process.what}) failed: {what}")
        self.note(f"{process.pid} ended: {ended.how} {type(ended.error).__name__ if ended.error else ''}")
        process.ended = True
        self.scheduler.kill(process)  # threads end with their process
        if then is not None:
            then(ended)

    def step_clock(self, after: float, clock: str, seconds: float) -> None:
        """Set the clock of the store or of a machine forward or back, after some seconds."""

        def step() -> None:
            self.note(f"the clock of {clock} steps by {seconds:.0f} s")
            if clock == "store":
                self.clock_stepped = True
                self.objects.clock_step += seconds
            else:
                self.machine.wall_steps[clock] = self.machine.wall_steps.get(clock, 0.0) + seconds

        self.scheduler.later(after, step)

    def run(self) -> None:
        """Let all processes run until they have ended."""
        with self._simulated():
            try:
                self.scheduler.run()
            except EndlessError as error:
                self.violations.append(f"the night does not end: {error}")
            finally:
                shutil.rmtree(self._caches, ignore_errors=True)

    @contextlib.contextmanager
    def _simulated(self) -> Iterator[None]:
        with contextlib.ExitStack() as patches:
            patches.enter_context(vectors_from_keys(DIM, self._nudge if self._nudged else None))
            patches.enter_context(self.machine.simulated())
            if self.kind == "shards":  # else new rows would stay loose, as few as they are
                patches.enter_context(patch("dpr.stages.loose_rows.max_new", lambda _: -1_000_000))
            yield

    def _nudge(self, vectors_ND: npt.NDArray[np.float16]) -> npt.NDArray[np.float16]:
        if self.machine.process.machine != OTHER_MACHINE:
            return vectors_ND
        nudged_ND: npt.NDArray[np.float16] = np.nextafter(vectors_ND, np.float16(0))
        return nudged_ND


def is_injected(error: DprError) -> bool:
    """Return whether an error is one that the faulty store made up."""
    return isinstance(error, StoreError) and "failed on purpose" in str(error)
