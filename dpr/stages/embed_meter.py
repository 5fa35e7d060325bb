"""How fast passages are embedded, and what limits the speed: measured by the steps, added up for people."""

import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Self

from pydantic import Field

from dpr.formats.cut_texts import CutTexts
from dpr.formats.records import Document
from dpr.stages.write_segment import SegmentResult

BUSY_SHARE = 0.9
"""An encoder that computes more of the time than this is what the stage waits for."""
LOOK_SECONDS = 1.0
STOPPED_SECONDS = 3.0
"""A thread that sleeps this much longer than intended was stopped with its process; a busy machine delays it less."""
STEPS = {"read": "reading", "tokenise": "tokenising", "encode": "encoding", "write": "writing"}


class BusyClock:
    """Measures for how long an encoder computes and for how long it waits, also when several units overlap.

    It runs from the first unit on: encoders are ready before there is work. Time in which the process was stopped
    (by SIGSTOP, say) is neither.
    """

    def __init__(self) -> None:
        self._lock, self._inside = threading.Lock(), 0
        self._last: float | None = None
        self._busy = self._waiting = 0.0
        self._idle = threading.Event()

    def __enter__(self) -> Self:
        with self._lock:
            self._tick(1)
            if self._inside == 1:
                self._idle = threading.Event()
                threading.Thread(target=self._subtract_stops, args=(self._idle,), name="stops", daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._lock:
            self._tick(-1)
            if not self._inside:
                self._idle.set()

    def take(self) -> tuple[float, float]:
        """Return the busy and waiting seconds since the last call."""
        with self._lock:
            taken = max(0.0, self._busy), self._waiting
            self._busy = self._waiting = 0.0
        return taken

    def _subtract_stops(self, idle: threading.Event) -> None:
        """Take the time in which the process was stopped out of the busy time, until the encoder is idle."""
        before = time.perf_counter()
        while not idle.wait(LOOK_SECONDS):
            now = time.perf_counter()
            late = now - before - LOOK_SECONDS
            if late > STOPPED_SECONDS:
                with self._lock:
                    self._busy -= late
            before = now

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
    """The time and work of embedding, over all encoders."""

    passages: int = 0
    tokens: int = 0
    cut: CutTexts = CutTexts()
    """Tokens that passages lost to the token limit."""
    seconds: dict[str, float] = Field(default_factory=dict)
    """By step: read, tokenise, encode, write; `wait`: encoders without work."""
    choices: list[str] = Field(default_factory=list)
    """The encoders' choices of arithmetic and forward pass, with the reasons."""

    @classmethod
    def of(cls, results: Sequence[SegmentResult]) -> "Encoding":
        """Return the sum over segments that were embedded."""
        seconds: Counter[str] = Counter()
        for result in results:
            seconds.update(result.seconds)
        return cls(
            passages=sum(result.rows for result in results),
            tokens=sum(result.tokens for result in results),
            cut=CutTexts.total(result.cut for result in results),
            seconds={step: round(value, 3) for step, value in seconds.items()},
            choices=sorted({result.encoder for result in results} - {""}),
        )

    @property
    def busy_share(self) -> float:
        """Share of their time in which encoders compute."""
        encode = self.seconds.get("encode", 0.0)
        return encode / (encode + self.seconds.get("wait", 0.0)) if encode else 0.0

    @property
    def waits_for(self) -> str:
        """The step that limits the speed: encoding if encoders are nearly always busy, else the longest other step."""
        if self.busy_share >= BUSY_SHARE:
            return STEPS["encode"]
        others = [step for step in STEPS if step != "encode"]
        return STEPS[max(others, key=lambda step: self.seconds.get(step, 0.0))]


class EncodingWatch:
    """Describes the progress of embedding for people; each way in which encoders compute is reported once."""

    def __init__(self, message: Callable[[str, str], None]) -> None:
        self._message, self._results, self._reported = message, list[SegmentResult](), set[str]()
        self._started = time.perf_counter()

    def __call__(self, result: SegmentResult) -> str:
        """Return the description after one more segment."""
        self._results.append(result)
        if result.encoder not in self._reported:
            self._reported.add(result.encoder)
            self._message("encoder", result.encoder)
        now = Encoding.of(self._results)
        rate = now.tokens / (time.perf_counter() - self._started)
        return f"{rate:,.0f} tokens/s, encoder busy {now.busy_share:.2f}, waits for {now.waits_for}"
