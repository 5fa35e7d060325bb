"""Signals that end a command: it releases what it holds, and one sentence says how to continue."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

STOPPING = (signal.SIGINT, signal.SIGTERM)
Handler = Callable[[int, FrameType | None], object] | int


class Stop:
    """Which signal has stopped a command, if one has."""

    def __init__(self) -> None:
        self.signal: signal.Signals | None = None

    def __call__(self, number: int, _: FrameType | None) -> None:
        """End the work of the main thread. Only KeyboardInterrupt ends Ray's waiting calls."""
        self.signal = signal.Signals(number)
        on_signals(signal.SIG_DFL, *STOPPING)
        raise KeyboardInterrupt(self.signal)  # a run's report says which


@contextmanager
def stopping_signals(stop: Stop) -> Iterator[None]:
    """Let the first Ctrl-C or SIGTERM within the block end it by `stop`; a second one ends the process at once."""
    with signals_restored():
        on_signals(stop, *STOPPING)
        yield


@contextmanager
def signals_restored() -> Iterator[None]:
    """Give the signals the handlers back that they had before the block."""
    before = {number: signal.getsignal(number) for number in STOPPING}
    try:
        yield
    finally:
        for number, handler in before.items():
            on_signals(handler or signal.SIG_DFL, number)  # None: a handler that Python does not know


def on_signals(handler: Handler, *numbers: int) -> None:
    """Set the handler of signals. Only the main thread can: in another one, do nothing."""
    if threading.current_thread() is threading.main_thread():
        for number in numbers:
            signal.signal(number, handler)
