"""Oversee the workers of a stage: report what it waits for while no result comes, and kill idle workers."""

import os
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from dpr.plurals import counted
from ray_jobs.heartbeats import BEAT_SECONDS, Call, CallState, Handle, Heartbeats

LOOK_SECONDS = 5.0
KILL_SECONDS = 10.0
"""Seconds to wait for the answer to a kill, each time; it may never come from a machine that cannot be reached."""
SILENT_BEATS = 2
"""A process is silent if it missed this many heartbeats."""
NAMED_AFTER_SECONDS = 30.0
"""After this time without work, a worker is named; after this time without a result, so is the longest call of the
stage. Half of `idle_seconds` if that is less."""


class Listener(Protocol):
    """Receives messages for the user while no result comes."""

    def waiting(self, text: str) -> None:
        """Show what the stage waits for; an empty text: it no longer waits."""

    def message(self, topic: str, text: str) -> None:
        """Show what was decided."""


class Oversight:
    """Oversees all stages of an executor. A unit may be repeated `retries` times after its worker died."""

    def __init__(self, idle_seconds: float, retries: int, listener: Listener | None) -> None:
        self._idle_seconds, self._listener = idle_seconds, listener
        self._named_after_seconds = min(NAMED_AFTER_SECONDS, idle_seconds / 2)
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=True)
        self.heartbeats: Handle = (
            ray.remote(Heartbeats).options(num_cpus=0, max_restarts=-1, scheduling_strategy=here).remote(retries)
        )

    @contextmanager
    def watch(self, stage: str, records: Sequence[str]) -> Iterator["UnitsUnderWay"]:
        """Oversee the units with these records within the block.

        An error of the listener is raised with the next result, or at the end of the block; until then oversight goes
        on.
        """
        under_way, ended = UnitsUnderWay(records), threading.Event()

        def look() -> None:
            while not ended.wait(LOOK_SECONDS):
                try:
                    self._look(stage, under_way)
                except Exception as error:  # raised where the results are awaited
                    under_way.failure = error

        thread = threading.Thread(target=look, name=f"oversight of {stage}", daemon=True)
        thread.start()
        try:
            yield under_way
        finally:
            ended.set()
            thread.join()
            self._say("")
        under_way.check()

    def take_lost(self) -> list[Call]:
        """Return the calls whose units were begun again elsewhere, since the last time this was called."""
        try:
            lost: list[Call] = ray.get(self.heartbeats.take_lost.remote(), timeout=LOOK_SECONDS)
        except ray.exceptions.RayError:
            return []  # Ray starts the actor again, and what it knew is lost
        return lost

    def _look(self, stage: str, under_way: "UnitsUnderWay") -> None:
        try:
            states: list[CallState] = ray.get(self.heartbeats.calls.remote(), timeout=LOOK_SECONDS)
        except ray.exceptions.RayError:
            return  # the actor starts, or Ray starts it again
        states = [state for state in states if state.call.record in under_way.missing]
        self._kill_idle(stage, under_way, states)  # first, as the listener may fail
        self._say(self._text(under_way, states))

    def _text(self, under_way: "UnitsUnderWay", states: Sequence[CallState]) -> str:
        """Return what the stage waits for; an empty text: results come."""
        at_work = [state for state in states if under_way.is_at_work(state.call)]
        quiet = time.monotonic() - under_way.last_result_at >= self._named_after_seconds
        idle_for = min(self._named_after_seconds, SILENT_BEATS * BEAT_SECONDS if quiet else NAMED_AFTER_SECONDS)
        if idle := [state for state in at_work if state.idle_seconds >= idle_for]:
            return _idle_text(idle)
        if not quiet:
            return ""
        return _longest_text(at_work) if at_work else _nobody_text(len(states))

    def _kill_idle(self, stage: str, under_way: "UnitsUnderWay", states: Sequence[CallState]) -> None:
        """Kill the processes that did nothing for too long; Ray repeats their units, as those of any lost worker.

        A kill that fails, since Ray has lost the machine, is tried again as long as the call appears.
        """
        for state in states:
            call = state.call
            if state.idle_seconds >= self._idle_seconds and under_way.is_at_work(call) and call not in under_way.kills:
                under_way.kills[call] = _kill(call)
        if not under_way.kills:
            return
        pending = list(under_way.kills.values())
        answered, _ = ray.wait(pending, num_returns=len(pending), timeout=KILL_SECONDS)
        for call, kill in list(under_way.kills.items()):
            if kill in answered:
                del under_way.kills[call]
                self._note(stage, under_way, call, kill)

    def _note(self, stage: str, under_way: "UnitsUnderWay", call: Call, kill: "ray.ObjectRef[bool]") -> None:
        """Note the outcome of a kill."""
        try:
            was_killed = ray.get(kill)
        except ray.exceptions.RayError:
            return
        if not was_killed:  # the process had died by itself, so its worker did not hang
            under_way.died.add(call)
            return
        under_way.given_up.add(call)
        if self._listener is not None:
            idle = f"used no CPU, or sent no heartbeat, for {self._idle_seconds:.0f} s"
            self._listener.message(stage, f"{_named(call)} {idle} and was killed; Ray repeats the unit")

    def _say(self, text: str) -> None:
        if self._listener is not None:
            self._listener.waiting(text)


class UnitsUnderWay:
    """What a stage has still to do."""

    def __init__(self, records: Sequence[str]) -> None:
        self.missing = set(records)
        """Records of the units that have no result yet."""
        self.given_up: set[Call] = set()
        """Calls whose process was killed because it did nothing."""
        self.died: set[Call] = set()
        """Calls whose process had died when it was to be killed."""
        self.kills: dict[Call, ray.ObjectRef[bool]] = {}
        """Kills that have not been answered yet."""
        self.last_result_at = time.monotonic()
        self.failure: Exception | None = None
        """The last error of the thread that oversees the units."""

    def finish(self, record: str) -> None:
        """Note that a unit has its result. Raises what `check` raises."""
        self.check()
        self.missing.discard(record)
        self.last_result_at = time.monotonic()

    def check(self) -> None:
        """Raise the error that oversight met, if there is one."""
        if self.failure is not None:
            raise self.failure

    def is_at_work(self, call: Call) -> bool:
        """Return whether the process of a call may still be at work on it."""
        return call not in self.given_up and call not in self.died

    def given_up_records(self) -> set[str]:
        """Return the records of units whose worker was killed because it did nothing."""
        return {call.record for call in self.given_up.copy()}  # the thread of oversight may add to it meanwhile


def end_worker(pid: int) -> bool:
    """Kill a worker of the Ray node that this task runs on; returns False if it had ended already."""
    try:
        status = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
        state, parent = status.rpartition(")")[2].split()[:2]
        if int(parent) != os.getppid() or state in "ZX":  # by now the number belongs to another process, or to none
            return False
        os.kill(pid, signal.SIGKILL)
    except (FileNotFoundError, ProcessLookupError):
        return False
    return True


def _kill(call: Call) -> "ray.ObjectRef[bool]":
    there = NodeAffinitySchedulingStrategy(call.node_id, soft=False)
    return ray.remote(end_worker).options(num_cpus=0, max_retries=0, scheduling_strategy=there).remote(call.pid)


def _named(call: Call) -> str:
    return f"process {call.pid} on {call.host} ({call.step} of {call.record})"


def _idle_text(states: Sequence[CallState]) -> str:
    longest = max(states, key=lambda state: state.idle_seconds)
    more = f", and {len(states) - 1} more" if len(states) > 1 else ""
    if longest.silent_seconds < SILENT_BEATS * BEAT_SECONDS:
        return f"{_named(longest.call)} has used no CPU for {longest.idle_seconds:.0f} s{more}"
    silence = f"has sent no heartbeat for {longest.silent_seconds:.0f} s{more}"
    return f"{_named(longest.call)} {silence}: it was stopped, or has died and Ray repeats its unit"


def _longest_text(states: Sequence[CallState]) -> str:
    longest = max(states, key=lambda state: state.running_seconds)
    return f"{_named(longest.call)} has worked for {longest.running_seconds:.0f} s"


def _nobody_text(to_repeat: int) -> str:
    if to_repeat:
        return f"Ray has to repeat {counted(to_repeat, 'unit')}, whose workers were killed or died"
    return "no unit is at work: workers start and load what they need, or wait for CPUs, GPUs or machines"
