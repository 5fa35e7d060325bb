"""What goes wrong, decided by the seed: for each call of the store, how long it takes and whether it fails."""

import random
from dataclasses import dataclass
from typing import Literal

Fault = Literal[
    "none", "before", "after", "late", "doubled", "kill before", "kill after", "kill late", "stop", "pause", "sleep"
]
"""`before`: the call fails without an effect. `after`: it takes effect and then fails, as when an answer is lost.
`late`: it fails, and takes effect some time later. `doubled`: it arrives twice, the second time some time later.
`kill …`: the process is killed, with the effect on the store that the second word says. `stop`: the process is stopped
before the call takes effect, `pause`: after it; `sleep` is a stop for longer than the lease."""
WRITES = ("put", "put_if_absent", "put_file_if_absent", "delete")
_OF_WRITES: tuple[Fault, ...] = ("after", "late", "doubled", "kill after", "kill late")
_OF_ALL: tuple[Fault, ...] = ("before", "kill before", "stop", "pause")


@dataclass(frozen=True)
class Weather:
    """How bad a night is."""

    lease_seconds: float
    call_seconds: float
    """What a call takes on average."""
    fault_rate: float
    """Share of the calls that fail."""
    faults: int
    """Faults of the night at most, so that it ends."""
    clock_steps: int
    sleeps_at_write: int = 0
    """Number of the write before which its process is stopped for longer than its lease, besides other faults; 0:
    none."""

    @classmethod
    def drawn(cls, draw: random.Random) -> "Weather":
        """Draw the weather of a night."""
        return cls(
            lease_seconds=draw.choice((30.0, 60.0, 360.0)),
            call_seconds=draw.choice((0.01, 0.1, 1.0)),
            fault_rate=draw.choice((0.002, 0.005, 0.01, 0.03)),
            faults=draw.randint(0, 8),
            clock_steps=draw.choice((0, 0, 1, 3)),
            sleeps_at_write=draw.choice((0, draw.randint(4, 60))),
        )


class Faults:
    """Draws what happens to each call."""

    def __init__(self, weather: Weather, draw: random.Random) -> None:
        self._weather, self._draw, self._left, self._writes = weather, draw, weather.faults, 0

    def next(self, method: str) -> Fault:
        """Draw what happens to a call of a method of the store."""
        self._writes += method in WRITES
        if method in WRITES and self._writes == self._weather.sleeps_at_write:
            return "sleep"
        if self._left == 0 or self._draw.random() >= self._weather.fault_rate:
            return "none"
        self._left -= 1
        return self._draw.choice(_OF_ALL + _OF_WRITES if method in WRITES else _OF_ALL)

    def seconds(self) -> float:
        """Draw how long half a call takes."""
        return min(self._draw.expovariate(2.0 / self._weather.call_seconds), self._weather.lease_seconds / 4)

    def stop_seconds(self, fault: Fault) -> float:
        """Draw how long a process stands still: often longer than its lease."""
        return self._draw.uniform(1.5 if fault == "sleep" else 0.1, 3.0) * self._weather.lease_seconds

    def late_seconds(self) -> float:
        """Draw how much later a request takes effect."""
        return self._draw.choice((0.5, 5.0, 0.9 * self._weather.lease_seconds))  # the lease outlasts any call
