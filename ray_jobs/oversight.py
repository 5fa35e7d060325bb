"""Oversee the workers of a stage: say what a silent stage waits for, and end a worker that does nothing."""

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

from ray_jobs.heartbeats import BEAT_SECONDS, Call, CallState, Handle, Heartbeats

LOOK_SECONDS = 5.0
NAMED_AFTER_SECONDS = 30.0
"""A worker that has done nothing for so long is named, as is the longest call of a stage that gave no result for so
long; half of `idle_seconds` if that is less."""


class Listener(Protocol):
    """Receives what a person should know while no result comes."""

    def waiting(self, text: str) -> None:
        """Show what the stage waits for; an empty text: it no longer does."""

    def message(self, topic: str, text: str) -> None:
        """Show what was decided."""


class Oversight:
    """Oversees all stages of an executor."""

    def __init__(self, idle_seconds: float, listener: Listener | None) -> None:
        self._idle_seconds, self._listener = idle_seconds, listener
        self._named_after_seconds = min(NAMED_AFTER_SECONDS, idle_seconds / 2)
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=True)
        self.heartbeats: Handle = (
            ray.remote(Heartbeats).options(num_cpus=0, max_restarts=-1, scheduling_strategy=here).remote()
        )

    @contextmanager
    def over(self, stage: str, records: Sequence[str]) -> Iterator["UnitsUnderWay"]:
        """Oversee the units with these records within the block."""
        under_way, ended = UnitsUnderWay(records), threading.Event()

        def look() -> None:
            while not ended.wait(LOOK_SECONDS):
                self._look(stage, under_way)

        thread = threading.Thread(target=look, name=f"oversight of {stage}", daemon=True)
        thread.start()
        try:
            yield under_way
        finally:
            ended.set()
            thread.join()
            self._say("")

    def _look(self, stage: str, under_way: "UnitsUnderWay") -> None:
        try:
            states: list[CallState] = ray.get(self.heartbeats.calls.remote(), timeout=LOOK_SECONDS)
        except ray.exceptions.RayError:
            return  # the actor starts, or Ray starts it again
        states = [state for state in states if under_way.holds(state.call)]
        quiet = time.monotonic() - under_way.last_result_at >= self._named_after_seconds
        idle_for = min(self._named_after_seconds, 2 * BEAT_SECONDS if quiet else NAMED_AFTER_SECONDS)
        if idle := [state for state in states if state.idle_seconds >= idle_for]:
            self._say(_idle_text(idle))
        else:
            self._say(_longest_text(states) if quiet else "")
        for state in states:
            if state.idle_seconds >= self._idle_seconds:
                under_way.given_up.add(state.call)
                self._give_up(stage, state)

    def _give_up(self, stage: str, state: CallState) -> None:
        """End the process of a call; Ray then repeats its units, as those of any worker that was lost."""
        call = state.call
        there = NodeAffinitySchedulingStrategy(call.node_id, soft=False)
        ray.remote(end_worker).options(num_cpus=0, max_retries=0, scheduling_strategy=there).remote(call.pid)
        if self._listener is not None:
            text = f"{_named(call)} did nothing for {state.idle_seconds:.0f} s and is ended; Ray does the unit again"
            self._listener.message(stage, text)

    def _say(self, text: str) -> None:
        if self._listener is not None:
            self._listener.waiting(text)


class UnitsUnderWay:
    """What a stage has still to do."""

    def __init__(self, records: Sequence[str]) -> None:
        self.missing = set(records)
        """Records of the units that have no result yet."""
        self.given_up: set[Call] = set()
        """Calls whose process was ended because it did nothing."""
        self.last_result_at = time.monotonic()

    def finish(self, record: str) -> None:
        """Note that a unit has its result."""
        self.missing.discard(record)
        self.last_result_at = time.monotonic()

    def holds(self, call: Call) -> bool:
        """Return whether a call is part of what the stage has still to do."""
        return call.record in self.missing and call not in self.given_up

    def given_up_records(self) -> set[str]:
        """Return the records of units whose worker was ended because it did nothing."""
        return {call.record for call in self.given_up}


def end_worker(pid: int) -> None:
    """Kill a worker of the Ray node that this task runs on, unless it has ended already."""
    try:
        status = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return
    parent = int(status.rpartition(")")[2].split()[1])
    if parent == os.getppid():  # else the number belongs to another process by now
        os.kill(pid, signal.SIGKILL)


def _named(call: Call) -> str:
    return f"process {call.pid} on {call.host} ({call.step} of {call.record})"


def _idle_text(states: Sequence[CallState]) -> str:
    longest = max(states, key=lambda state: state.idle_seconds)
    more = f", and {len(states) - 1} more" if len(states) > 1 else ""
    return f"{_named(longest.call)} has done nothing for {longest.idle_seconds:.0f} s{more}"


def _longest_text(states: Sequence[CallState]) -> str:
    if not states:
        return "no unit has begun: workers start and load what they need, or wait for CPUs, GPUs or machines"
    longest = max(states, key=lambda state: state.running_seconds)
    return f"{_named(longest.call)} has worked for {longest.running_seconds:.0f} s"
