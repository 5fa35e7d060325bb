"""Let Ray wait longer for the processes that it starts than its own 30 seconds, which a busy machine may exceed."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from ray._private import services

START_SECONDS = 120.0
LOOK_EVERY_SECONDS = 0.2


@contextmanager
def patient_start() -> Iterator[None]:
    """Let Ray, within the block, wait START_SECONDS for the node that it starts: each look for it lasts so long."""
    look = services.get_node

    def wait(*arguments: Any) -> Any:
        give_up = time.monotonic() + START_SECONDS
        while True:
            try:
                return look(*arguments)
            except RuntimeError:  # it is not there yet
                if time.monotonic() > give_up:
                    raise
                time.sleep(LOOK_EVERY_SECONDS)

    services.get_node = wait
    try:
        yield
    finally:
        services.get_node = look
