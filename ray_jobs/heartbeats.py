"""Workers report to one actor what they work on and whether they compute, so that a driver can name one that hangs.

A worker that was stopped sends no beats. One that waits forever sends beats in which its CPU time does not grow.
Without beats, the driver could not tell these from a worker with a long unit: it sees only that no result comes.

The actor also counts how often the workers of a unit died, since Ray's own count is of another thing. While a machine
does not answer, Ray sends a call of one of its actors again every few seconds, and counts each time; it takes 15 to 65
seconds to find that the machine is lost. So such calls are repeated without limit, and here the bound is on those that
began in a worker, and ended with it, on a machine that is still there.
"""

import concurrent.futures
import os
import socket
import threading
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeAlias, TypeVar

import ray

T = TypeVar("T")

BEAT_SECONDS = 5.0
IDLE_SHARE = 0.03
"""A process that uses a smaller share of one CPU than this counts as idle. Ray's own threads use 0.003 of one in a
task, 0.008 in an actor of Ray Data, and 0.012 there while other processes want the CPU."""
ANSWER_SECONDS = 5.0
"""A step waits at most this long for the actor to note that it begins."""


class LostTooOftenError(Exception):
    """The workers of a unit died too often. The arguments are the records of all units that this may be true of."""


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
    """The actor: it holds the calls that have not ended, by the record of their unit.

    A unit may be repeated `retries` times after its worker died, and an actor restarted twice as often: enough for two
    such units.
    """

    def __init__(self, retries: int) -> None:
        self._retries = retries
        self._noted: dict[str, _Noted] = {}
        self._left: set[Call] = set()
        """Calls of a unit that was begun again before they ended: their processes were lost."""
        self._deaths: defaultdict[tuple[str, str], list[str]] = defaultdict(list)
        """By step and record: the machines on which workers of a unit were lost."""
        self._starts: defaultdict[str, list[str]] = defaultdict(list)
        """By actor: the machines on which it was started."""

    def start(self, actor_id: str, node_id: str) -> bool:
        """Note that a process of an actor starts; return False if too many of them have died."""
        starts, most = self._starts[actor_id], 1 + 2 * self._retries
        starts.append(node_id)
        return len(starts) <= most or len(_there(starts)) <= most

    def begin(self, call: Call, cpu_seconds: float) -> tuple[str, ...]:
        """Note that a call begins; return () if it may go on.

        If too many workers of its unit have died, the records of all units are returned that may be the cause: one
        process may work on several units.
        """
        before = self._noted.get(call.record)
        # the same process has the call again if its connection to the driver broke
        if before is not None and before.call.step == call.step and before.call != call:
            self._deaths[call.step, call.record].append(before.call.node_id)
        self.beat(call, cpu_seconds)
        deaths = self._deaths.get((call.step, call.record), [])
        if len(deaths) <= self._retries or len(_there(deaths)) <= self._retries:
            return ()
        return tuple(
            record for (_, record), several in self._deaths.items() if len(_there(several)) >= max(1, self._retries)
        )

    def beat(self, call: Call, cpu_seconds: float) -> None:
        """Note that a call goes on, and how much CPU time its process has used so far."""
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


def _there(node_ids: Sequence[str]) -> list[str]:
    """Return those machines that Ray has not given up."""
    there = {node["NodeID"] for node in ray.nodes() if node["Alive"]}
    return [node_id for node_id in node_ids if node_id in there]


Handle: TypeAlias = "ray.actor.ActorHandle[Heartbeats]"


@contextmanager
def beating(heartbeats: Handle, step: str, record: str) -> Iterator[None]:
    """Tell the actor, within the block, that this process works on a unit.

    Raises LostTooOftenError, before the block, if too many workers of the unit have died.
    """
    context = ray.get_runtime_context()
    call = Call(step, record, context.get_node_id(), socket.gethostname(), os.getpid())
    if lost := _answer(heartbeats.begin.remote(call, time.process_time()), ()):
        raise LostTooOftenError(*lost)
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


def start_actor(heartbeats: Handle) -> None:
    """Tell the actor of heartbeats that this process of an actor starts. Raises LostTooOftenError if too many died."""
    context = ray.get_runtime_context()
    if not _answer(heartbeats.start.remote(context.get_actor_id(), context.get_node_id()), True):
        raise LostTooOftenError


def _answer(reply: "ray.ObjectRef[T]", otherwise: T) -> T:
    """Return what the actor answers; `otherwise` if it does not, since a run does not depend on it."""
    answer = reply.future()
    # not by ray.wait, during which Ray would give this worker's CPU to another task
    concurrent.futures.wait([answer], ANSWER_SECONDS)
    return otherwise if not answer.done() or answer.exception() is not None else answer.result()
