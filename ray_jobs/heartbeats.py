"""Workers report to one actor what they work on and whether they compute, so that a driver can name one that hangs.

A worker that was stopped sends no beats. One that waits forever sends beats in which its CPU time does not grow.
Without beats, the driver could not tell these from a worker with a long unit: it sees only that no result comes.
"""

import concurrent.futures
import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeAlias

import ray

BEAT_SECONDS = 5.0
IDLE_SHARE = 0.03
"""A process that uses a smaller share of one CPU than this counts as idle. Ray's own threads use 0.003 of one in a
task, 0.008 in an actor of Ray Data, and 0.012 there while other processes want the CPU."""
ANSWER_SECONDS = 5.0
"""A step waits at most this long for the actor to note that it begins: a run does not depend on this actor."""


@dataclass(frozen=True)
class Call:
    """One step that works on one unit, in one process."""

    step: str
    record: str
    node_id: str
    host: str
    pid: int


@dataclass(frozen=True)
class CallState:
    """A call, and how long it has run."""

    call: Call
    running_seconds: float
    silent_seconds: float
    """Since the last heartbeat: it is long if the process is stopped or has died."""
    idle_seconds: float
    """Since the last heartbeat in which its CPU time had grown; never less than `silent_seconds`."""


@dataclass
class _Noted:
    call: Call
    since: float
    busy_at: float
    beat_at: float
    cpu_seconds: float


class Heartbeats:
    """The actor: it holds the calls that have not ended, by the record of their unit."""

    def __init__(self) -> None:
        self._noted: dict[str, _Noted] = {}
        self._left: set[Call] = set()
        """Calls of a unit that was begun again before they ended: their processes were lost."""

    def beat(self, call: Call, cpu_seconds: float) -> None:
        """Note that a call has begun or goes on, and how much CPU time its process has used so far."""
        now = time.monotonic()
        noted = self._noted.get(call.record)
        if noted is None or noted.call != call:  # another step of the unit, or Ray repeats it elsewhere
            if noted is not None:
                self._left.add(noted.call)
            self._noted[call.record] = _Noted(call, now, now, now, cpu_seconds)
            return
        if cpu_seconds - noted.cpu_seconds > IDLE_SHARE * (now - noted.beat_at):
            noted.busy_at = now
        noted.beat_at, noted.cpu_seconds = now, cpu_seconds

    def ended(self, call: Call) -> None:
        """Forget a call."""
        self._left.discard(call)  # it had ended, and the report of the next step arrived first
        noted = self._noted.get(call.record)
        if noted is not None and noted.call == call:
            del self._noted[call.record]

    def take_lost(self) -> list[Call]:
        """Return the calls that never ended and whose unit was begun again, since the last time this was called."""
        lost, self._left = list(self._left), set()
        return lost

    def calls(self) -> list[CallState]:
        """Return the calls that have not ended, including those of processes that died: nobody reports their end."""
        now = time.monotonic()
        return [
            CallState(noted.call, now - noted.since, now - noted.beat_at, now - noted.busy_at)
            for noted in self._noted.values()
        ]


Handle: TypeAlias = "ray.actor.ActorHandle[Heartbeats]"


@contextmanager
def beating(heartbeats: Handle, step: str, record: str) -> Iterator[None]:
    """Tell the actor, within the block, that this process works on a unit."""
    context = ray.get_runtime_context()
    call = Call(step, record, context.get_node_id(), socket.gethostname(), os.getpid())
    first = heartbeats.beat.remote(call, time.process_time()).future()
    # not by ray.wait, during which Ray would give this worker's CPU to another task
    concurrent.futures.wait([first], ANSWER_SECONDS)
    ended = threading.Event()

    def beat() -> None:
        while not ended.wait(BEAT_SECONDS):
            heartbeats.beat.remote(call, time.process_time())

    thread = threading.Thread(target=beat, name="heartbeat", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()  # no beat must follow the end
        heartbeats.ended.remote(call)
