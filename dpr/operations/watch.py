"""Follow a run from another machine by its lease, its heartbeats and its release; nothing else is read.

A look costs one listing; a new heartbeat costs one read more, and a new holder another. Nothing is written.
"""

import datetime
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from pydantic import ValidationError

from dpr.engine.run_state import Ending, RunState, StageReport
from dpr.errors import MissingObjectError
from dpr.operations.estimate import duration
from dpr.plurals import counted
from dpr.store import Store
from dpr.store.lease_objects import Holder, LeaseState, read_claim, read_last_words, read_state


@dataclass(frozen=True)
class Sight:
    """The result of one look."""

    lease: LeaseState
    holder: Holder | None
    """None: its claim was removed a moment ago."""
    run: RunState | None
    """None: it has not reported anything yet, or it is not a run."""
    silent_seconds: float
    """How long no heartbeat has come, since this process began to look."""
    is_dead: bool
    """Whether the holder ran on this machine and ended without a release, or was silent for longer than the lease
    lives."""

    @property
    def is_over(self) -> bool:
        """Return whether the run is over: the holder released the lease, or it is dead."""
        return self.lease.released or self.is_dead

    @property
    def ending(self) -> Ending | None:
        """Return how the run ended; None: it has not ended, or did not say how."""
        return self.run.ending if self.run is not None else None

    def describe(self) -> str:
        """Return the state in a sentence."""
        who = str(self.holder) if self.holder is not None else "a run that has just ended"
        if self.lease.released:
            return self.ending.sentence if self.ending else f"{who} has ended, and did not say how"
        if self.is_dead:
            return f"{who} gave no heartbeat for {self.silent_seconds:.0f} s: it has died, or cannot reach the store"
        at = datetime.datetime.fromtimestamp(self.lease.modified, datetime.UTC)
        beat = f"{who}, last heartbeat at {at:%H:%M:%S} UTC, none for {self.silent_seconds:.0f} s"
        if self.run is None or not self.run.stages:
            return f"no stage has begun; {beat}"
        return f"{describe_stage(self.run.stages[-1])}; {_rest(self.run)}{beat}"


def describe_stage(stage: StageReport) -> str:
    """Return a stage's progress, its speed, and the time left at that speed."""
    done = stage.units - stage.waiting
    before = f" ({stage.done_before:,} before)" if stage.done_before else ""
    rows = stage.rows_before + stage.rows
    planned = stage.planned_rows
    rows_done = f"{rows:,} of {counted(planned, 'row')}" if planned else counted(rows, "row")
    text = f"{stage.stage}: {done:,} of {stage.units:,} units{before}, {rows_done}"
    if not stage.rows or not stage.seconds:
        return text
    left = f", about {duration(left_seconds(stage))} left" if stage.waiting else ""
    return f"{text}, {stage.rows / stage.seconds:,.0f} rows/s{left}"


def left_seconds(stage: StageReport) -> float | None:
    """Return the time left for a stage at its present speed; None: it has done nothing yet."""
    if stage.planned_rows and stage.rows:
        return max(0, stage.planned_rows - stage.rows_before - stage.rows) * stage.seconds / stage.rows
    done = stage.units - stage.done_before - stage.waiting
    return stage.waiting * stage.seconds / done if done else None


def _rest(run: RunState) -> str:
    if run.expected_seconds is None:
        return f"{duration(run.seconds)} since the start; "
    rest = max(0.0, run.expected_seconds - run.seconds)
    return f"{duration(run.seconds)} since the start, about {duration(rest)} left in all by the estimate; "


class Watcher:
    """Looks at a store repeatedly."""

    def __init__(self, store: Store, clock: Callable[[], float] = time.monotonic) -> None:
        self._store, self._clock = store, clock
        self._last: Sight | None = None
        self._changed_at = clock()

    def look(self) -> Sight | None:
        """Return the present state; None: nobody has ever worked on the store."""
        sight = self._look()
        # a process that has ended may have released the lease after it was looked at
        return self._look() if sight is not None and sight.is_dead else sight

    def _look(self) -> Sight | None:
        # a listing that overlaps the moment in which the next holder removes the last one's objects may see none
        lease, last = read_state(self._store) or read_state(self._store), self._last
        if lease is None:
            return None
        holder, run = (last.holder, last.run) if last is not None else (None, None)
        if last is None or last.lease.fencing_number != lease.fencing_number:
            holder, run = self._holder(lease.fencing_number), None
        if last is None or last.lease != lease:
            self._changed_at = self._clock()
            run = self._run(lease) or run
        silent_seconds, is_dead = self._clock() - self._changed_at, False
        if holder is not None and not lease.released:
            is_dead = holder.has_ended() or silent_seconds > holder.ttl_seconds
        self._last = Sight(lease, holder, run, silent_seconds, is_dead)
        return self._last

    def _holder(self, fencing_number: int) -> Holder | None:
        try:
            return read_claim(self._store, fencing_number)
        except MissingObjectError:
            return None

    def _run(self, lease: LeaseState) -> RunState | None:
        try:
            return RunState.model_validate_json(read_last_words(self._store, lease) or b"")
        except ValidationError:
            return None


def follow(store: Store, poll_seconds: float, sleep: Callable[[float], object] = time.sleep) -> Iterator[Sight]:
    """Yield the state every `poll_seconds` until the work is over; nothing if there never was any."""
    watcher = Watcher(store)
    while (sight := watcher.look()) is not None:
        yield sight
        if sight.is_over:
            return
        sleep(poll_seconds)
