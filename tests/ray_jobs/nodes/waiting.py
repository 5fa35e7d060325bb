"""Wait for what other processes do."""

import time
from collections.abc import Callable

WAIT_SECONDS = 300.0
"""Longer than anything that a test waits for, on any machine."""


def wait_until(
    holds: Callable[[], bool], what: str, more: Callable[[], str], wait_seconds: float = WAIT_SECONDS
) -> None:
    """Return as soon as something holds."""
    until = time.monotonic() + wait_seconds
    while not holds():
        assert time.monotonic() < until, f"waited in vain until {what}: {more()}"
        time.sleep(0.1)
