"""When a request is sent again, and after how long. All routes only read, so a second request does no harm."""

import random
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

import httpx

FIRST_PAUSE_SECONDS = 0.25
MAX_PAUSE_SECONDS = 30.0
"""If a service asks for a longer pause, the request is not repeated."""
BUSY = (429, 502, 503, 504)
"""Statuses by which the service, or a proxy before it, says that it takes no request now."""
_random = random.Random()
"""Not Python's shared generator, which a program may have seeded to get the same numbers each time."""
UNDELIVERED = (httpx.ConnectError, httpx.ConnectTimeout, httpx.RemoteProtocolError, httpx.ReadError, httpx.WriteError)
"""The connection failed. A time-out of the answer is not here: the service may be busy with it still."""


@dataclass(frozen=True)
class Patience:
    """How often a request is sent again."""

    retries: int

    def pause_seconds(self, attempt: int, outcome: httpx.Response | httpx.RequestError) -> float | None:
        """Return the time to wait before the next attempt; None: there is none. `attempt` counts from 0."""
        if attempt >= self.retries:
            return None
        if isinstance(outcome, httpx.RequestError):
            return _own_pause(attempt) if isinstance(outcome, UNDELIVERED) else None
        if outcome.status_code not in BUSY:
            return None
        wait_seconds = _retry_after(outcome.headers.get("Retry-After", ""))
        if wait_seconds is None:
            return _own_pause(attempt)
        # not earlier than asked, and not all clients at the same moment
        return wait_seconds * _random.uniform(1.0, 1.25) if wait_seconds <= MAX_PAUSE_SECONDS else None


def _own_pause(attempt: int) -> float:
    return float(min(MAX_PAUSE_SECONDS, FIRST_PAUSE_SECONDS * 2**attempt) * _random.uniform(0.5, 1.0))


def _retry_after(value: str) -> float | None:
    """Return the seconds that the header asks for, in either of its forms; None if it is in neither."""
    if value.strip().isascii() and value.strip().isdecimal():
        return float(value)
    try:
        until = parsedate_to_datetime(value)
    except ValueError:
        return None
    return max(0.0, (until.replace(tzinfo=until.tzinfo or UTC) - datetime.now(UTC)).total_seconds())
