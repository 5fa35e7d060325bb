"""What a simulated process sees of its machine: threads, clocks, random ids, its own name, its cache.

Where the product asks Python or the system for one of these, the answer comes from the simulation. All else is real.
"""

import contextlib
import datetime
import random
import sys
import uuid
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, TypeVar
from unittest.mock import patch

from dpr.store.base import Store
from dpr.store.process import ProcessName
from simulation.scheduler import NEVER, Process, Scheduler, Task

T = TypeVar("T")
EPOCH = datetime.datetime(2030, 1, 1, tzinfo=datetime.UTC).timestamp()


class InlinePool:
    """Stands for a pool of threads: does each piece of work when it is submitted."""

    def __init__(self, *_: object, **__: object) -> None:
        pass

    def __enter__(self) -> "InlinePool":
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def submit(self, work: Callable[..., T], *args: Any, **kwargs: Any) -> "Future[T]":
        """Do the work now."""
        future: Future[T] = Future()
        try:
            future.set_result(work(*args, **kwargs))
        except Exception as error:
            future.set_exception(error)
        return future

    def map(self, work: Callable[..., T], *values: Iterable[Any], **_: object) -> Iterator[T]:
        """Do all the work now."""
        return iter([work(*each) for each in zip(*values, strict=False)])

    def shutdown(self, *_: object, **__: object) -> None:
        """Do nothing: nothing is under way."""


class Event:
    """`threading.Event` on the simulated clock."""

    def __init__(self, scheduler: Scheduler) -> None:
        self._scheduler, self._set = scheduler, False
        self._waiting: list[Task] = []

    def is_set(self) -> bool:
        return self._set

    def set(self) -> None:
        self._set = True
        for task in self._waiting:
            self._scheduler.wake(task)

    def clear(self) -> None:
        self._set = False

    def wait(self, timeout: float | None = None) -> bool:
        if not self._set:
            task = self._scheduler.current
            assert task is not None
            self._waiting.append(task)
            try:
                self._scheduler.sleep(NEVER if timeout is None else timeout)
            finally:
                self._waiting.remove(task)
        return self._set


class Thread:
    """`threading.Thread` as a task of the simulated process that starts it."""

    def __init__(self, scheduler: Scheduler, target: Callable[..., None], args: tuple[Any, ...] = (), **_: Any) -> None:
        self._scheduler = scheduler
        self._work: Callable[[], None] = partial(target, *args)
        self._ended, self._started = Event(scheduler), False

    def start(self) -> None:
        task = self._scheduler.current
        assert task is not None
        self._started = True
        self._scheduler.start(task.process, self._run)

    def join(self, timeout: float | None = None) -> None:
        self._ended.wait(timeout)

    def is_alive(self) -> bool:
        return self._started and not self._ended.is_set()

    def _run(self) -> None:
        try:
            self._work()
        finally:
            self._ended.set()


class Machine:
    """Replaces what the product asks Python and the system for, as long as `simulated` lasts."""

    def __init__(self, scheduler: Scheduler, seed: int, open_store: Callable[[str], Store], caches: Path) -> None:
        self._scheduler, self._open_store, self._caches = scheduler, open_store, caches
        self._ids = random.Random(f"ids of {seed}")
        self.wall_steps: dict[str, float] = {}
        """Machine → seconds that its clock is wrong by."""

    @property
    def process(self) -> Process:
        """Return the process that runs now. Raises Killed if it was killed."""
        task = self._scheduler.current
        assert task is not None
        return task.process

    @contextlib.contextmanager
    def simulated(self) -> Iterator[None]:
        """Let the product run on this machine."""
        loaded = [module for name, module in list(sys.modules.items()) if name.startswith("dpr.")]
        pools = [(m, "ThreadPoolExecutor", InlinePool) for m in loaded if hasattr(m, "ThreadPoolExecutor")]
        with contextlib.ExitStack() as patches:
            for owner, name, value in (*self._names(), *self._clocks_and_threads(), *pools):
                patches.enter_context(patch.object(owner, name, value))
            yield

    def _names(self) -> list[tuple[Any, str, Any]]:
        """Return what gives ids, processes, stores and caches: owner, attribute, replacement."""
        return [
            (uuid, "uuid4", lambda: uuid.UUID(int=self._ids.getrandbits(128), version=4)),
            (ProcessName, "own", lambda: self.process.name),
            (ProcessName, "is_here", lambda name: name.machine == self.process.machine),
            (ProcessName, "has_ended", property(lambda name: lambda: self._has_ended(name))),
            (sys.modules["dpr.store"], "LocalStore", self._open_store),
            (sys.modules["dpr.store.cache"], "_folder", lambda: self._caches / self.process.machine),
            (sys.modules["dpr.store.lease"], "os", SimpleNamespace(getpid=lambda: self.process.pid)),
        ]

    def _clocks_and_threads(self) -> Iterator[tuple[Any, str, Any]]:
        """Yield what modules of the product ask for times and threads: a new one of these has to be added."""
        scheduler, machine = self._scheduler, self

        class Now(datetime.datetime):
            @classmethod
            def now(cls, tz: datetime.tzinfo | None = None) -> Any:
                return datetime.datetime.fromtimestamp(machine._wall(), tz)

        threads = SimpleNamespace(Thread=partial(Thread, scheduler), Event=partial(Event, scheduler))
        clock = SimpleNamespace(monotonic=lambda: scheduler.now, sleep=scheduler.sleep, time=self._wall)
        dates = SimpleNamespace(datetime=Now, UTC=datetime.UTC)
        for module, name, value in (
            ("dpr.store.lease", "threading", threads),
            ("dpr.store.lease", "time", clock),
            ("dpr.store.lease_objects", "datetime", Now),
            ("dpr.formats.markers", "threading", threads),
            ("dpr.formats.markers", "datetime", Now),
            ("dpr.formats.snapshots", "datetime", dates),
            ("dpr.operations.gc", "time", clock),
            ("dpr.run", "datetime", dates),
            ("dpr.run", "time", clock),
            ("dpr.engine.stage_meter", "time", clock),
        ):
            yield sys.modules[module], name, value

    def _wall(self) -> float:
        return EPOCH + self._scheduler.now + self.wall_steps.get(self.process.machine, 0.0)

    def _has_ended(self, name: ProcessName) -> bool:
        if name.machine != self.process.machine:
            return False
        tasks = self._scheduler.tasks_of(name.pid)
        return all(task.done for task in tasks) or any(task.process.killed for task in tasks)
