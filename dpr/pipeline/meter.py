"""How fast passages are encoded and what that waits for: noted by the steps of the embed stage, added up for people."""

import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Self

from pydantic import Field

from dpr.records import Document, Record

BUSY_SHARE = 0.9
"""An encoder that computes more of the time than this is what the stage waits for."""
STEPS = {"read": "reading", "tokenise": "tokenising", "encode": "encoding", "write": "writing"}


class BusyClock:
    """Tells the time in which an encoder computes from the time in which it waits, also when several units overlap.

    It runs from the first unit on: encoders are ready before there is work.
    """

    def __init__(self) -> None:
        self._lock, self._inside = threading.Lock(), 0
        self._last: float | None = None
        self._busy = self._waiting = 0.0

    def __enter__(self) -> Self:
        with self._lock:
            self._tick(1)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._lock:
            self._tick(-1)

    def take(self) -> tuple[float, float]:
        """Busy and waiting seconds that nobody has taken yet."""
        with self._lock:
            taken = self._busy, self._waiting
            self._busy = self._waiting = 0.0
        return taken

    def _tick(self, entered: int) -> None:
        now = time.perf_counter()
        since = 0.0 if self._last is None else now - self._last
        if self._inside:
            self._busy += since
        else:
            self._waiting += since
        self._last = now
        self._inside += entered


class Encoding(Document):
    """What embedding took, over all encoders."""

    passages: int = 0
    tokens: int = 0
    seconds: dict[str, float] = Field(default_factory=dict)
    """By step: read, tokenise, encode, write; `wait`: encoders without work; `limit`: what encoding would take if the
    device did nothing but matrix products at its measured best."""
    choices: list[str] = Field(default_factory=list)
    """How the encoders chose to compute, and why."""

    @classmethod
    def of(cls, records: Sequence[Record]) -> "Encoding":
        """The sum over units of kind `embed`."""
        seconds: Counter[str] = Counter()
        for record in records:
            seconds.update(record.facts.get("seconds", {}))  # older records have none
        return cls(
            passages=sum(record.rows for record in records),
            tokens=sum(record.facts["tokens"] for record in records),
            seconds={step: round(value, 3) for step, value in seconds.items()},
            choices=sorted({record.facts.get("encoder", "") for record in records} - {""}),
        )

    @property
    def busy_share(self) -> float:
        """Share of their time in which encoders compute."""
        encode = self.seconds.get("encode", 0.0)
        return encode / (encode + self.seconds.get("wait", 0.0)) if encode else 0.0

    @property
    def limit_share(self) -> float:
        """Passages encoded over what the device's matrix products allow in the same time, waiting included."""
        return self.busy_share * self.seconds["limit"] / self.seconds["encode"] if self.busy_share else 0.0

    @property
    def waits_for(self) -> str:
        """What makes it no faster: encoding if encoders are busy nearly always, else the longest of the other steps."""
        others = [step for step in STEPS if step != "encode"]
        if self.busy_share >= BUSY_SHARE:
            return STEPS["encode"]
        return STEPS[max(others, key=lambda step: self.seconds.get(step, 0.0))]


class EncodingWatch:
    """Words for a person who watches units of kind `embed` come out; how encoders compute is said once each."""

    def __init__(self, say: Callable[[str, str], None]) -> None:
        self._say, self._records, self._said = say, list[Record](), set[str]()
        self._started = time.perf_counter()

    def __call__(self, record: Record) -> str:
        """What is known with one more unit done."""
        self._records.append(record)
        if (choice := record.facts["encoder"]) not in self._said:
            self._said.add(choice)
            self._say("encoder", choice)
        now = Encoding.of(self._records)
        rate = now.tokens / (time.perf_counter() - self._started)
        return (
            f"{rate:,.0f} tokens/s, {now.limit_share:.2f} of the measured limit, encoder busy {now.busy_share:.2f}, "
            f"waits for {now.waits_for}"
        )
