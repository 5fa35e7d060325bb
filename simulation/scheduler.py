"""Cooperative threads and a clock that only moves when all of them wait: the same choices give the same history.

A task is a real thread that runs only while it holds the baton. It passes the baton on wherever the product waits for
something: a call of the store, a sleep, an event. The scheduler then gives it to the task that wakes first. So tasks of
several simulated processes are interleaved by the delays of their calls, and two runs of one seed are the same.
"""

import heapq
import itertools
import threading
from collections.abc import Callable
from dataclasses import dataclass, field

from dpr.store.process import ProcessName

NEVER = float("inf")
MAX_STEPS = 200_000
"""Of one simulation: far more than any needs; so one that never ends is found."""


class Killed(BaseException):
    """The process of this task was killed; no handler of the product's errors catches it."""


class EndlessError(Exception):
    """A simulation that does not end: all tasks wait forever, or one of them runs forever."""


@dataclass
class Process:
    """A simulated process: what dies at once, and what others see of it."""

    pid: int
    machine: str
    what: str
    """What it does, for the trace."""
    killed: bool = False
    ended: bool = False
    stopped_until: float = 0.0
    calls: int = 0
    tasks: list["Task"] = field(default_factory=list)

    @property
    def name(self) -> ProcessName:
        return ProcessName(self.machine, self.machine, self.pid, "1")

    @property
    def lives(self) -> bool:
        return not (self.killed or self.ended)


class Task:
    """A thread of a simulated process."""

    def __init__(self, scheduler: "Scheduler", process: Process, work: Callable[[], None]) -> None:
        self.process, self.done, self.ticket = process, False, 0
        self.baton = threading.Semaphore(0)
        self._scheduler, self._work = scheduler, work
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def join(self) -> None:
        """Wait until the thread is gone, which ends at once after its last turn."""
        self._thread.join()

    def _run(self) -> None:
        self.baton.acquire()
        try:
            if not self.process.killed:
                self._work()
        except Killed:
            pass
        finally:
            self.done = True
            self._scheduler.idle.release()


class Scheduler:
    """Whose turn it is, and what time it is."""

    def __init__(self) -> None:
        self.now = 0.0
        """Seconds since the beginning."""
        self.idle = threading.Semaphore(0)
        self.current: Task | None = None
        self._waiting: list[tuple[float, int, int, Task | Callable[[], None]]] = []
        self._order = itertools.count()
        self._tasks: list[Task] = []
        self._steps = 0

    def start(self, process: Process, work: Callable[[], None], after: float = 0.0) -> Task:
        """Let a thread of a process begin after some seconds."""
        task = Task(self, process, work)
        process.tasks.append(task)
        self._tasks.append(task)
        self._wake(task, self.now + after)
        return task

    def later(self, seconds: float, act: Callable[[], None]) -> None:
        """Call a function after some seconds, outside of any process."""
        heapq.heappush(self._waiting, (self.now + seconds, next(self._order), 0, act))

    def run(self) -> None:
        """Run until all tasks have ended. Raises EndlessError if they do not."""
        problem = ""
        while self._waiting:
            wake, _, ticket, who = heapq.heappop(self._waiting)
            if not isinstance(who, Task):
                self.now = max(self.now, wake)
                who()
            elif not who.done and ticket == who.ticket:
                if not problem and (wake == NEVER or self._steps > MAX_STEPS):
                    problem = "all tasks wait forever" if wake == NEVER else f"no end after {MAX_STEPS} steps"
                    for task in self._tasks:
                        self.kill(task.process)
                    continue
                self.now = max(self.now, min(wake, 1e12))
                self.current = who
                who.baton.release()
                self.idle.acquire()
        for task in self._tasks:
            task.join()
        if problem:
            raise EndlessError(problem)

    def sleep(self, seconds: float) -> None:
        """Let the running task wait. Raises Killed if its process is killed meanwhile."""
        task = self.current
        assert task is not None
        if task.process.killed:
            raise Killed
        wake = max(self.now + seconds, task.process.stopped_until)
        self._steps += 1
        self._wake(task, wake)
        self.idle.release()
        task.baton.acquire()
        if task.process.killed:
            raise Killed
        if task.process.stopped_until > self.now:
            self.sleep(0.0)

    def wake(self, task: Task) -> None:
        """Let a waiting task go on now."""
        self._wake(task, max(self.now, task.process.stopped_until))

    def stop(self, process: Process, seconds: float) -> None:
        """Stop a process with all its threads for some seconds, as SIGSTOP does."""
        process.stopped_until = max(process.stopped_until, self.now + seconds)

    def kill(self, process: Process) -> None:
        """End a process: its threads run no more code of the product, except handlers that cannot reach the store."""
        process.killed = True
        process.stopped_until = 0.0
        for task in process.tasks:
            if not task.done and task is not self.current:
                self._wake(task, self.now)

    def tasks_of(self, pid: int) -> list[Task]:
        """Return the threads of a process."""
        return [task for task in self._tasks if task.process.pid == pid]

    def _wake(self, task: Task, wake: float) -> None:
        task.ticket += 1  # an earlier entry of this task counts no more
        heapq.heappush(self._waiting, (wake, next(self._order), task.ticket, task))
