"""End all tests if one of them hangs in a way that its own timeout cannot end, and say which.

The timeout of a test raises an error in its main thread, once. A call of C code that never returns does not see it, nor
does a process that was stopped, nor what a test waits for afterwards while it cleans up.
"""

import os
import signal
import sys
import threading
import time
from contextlib import suppress

import pytest

from tests.process_tree import descendants, state, title

SECONDS = float(os.environ.get("DPR_TEST_HUNG_SECONDS", "1300"))
"""More than the timeout of a test, and than the time after which its stack is printed (pyproject.toml)."""


class HungTests:
    """Notes which tests run, and watches how long they do; a plugin of the process that the others report to."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._since: dict[str, float] = {}
        threading.Thread(target=self._watch, name="hung tests", daemon=True).start()

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        self._since[nodeid] = time.monotonic()

    def pytest_runtest_logfinish(self, nodeid: str) -> None:
        self._since.pop(nodeid, None)

    def _watch(self) -> None:
        while True:
            time.sleep(self._seconds / 100)
            for nodeid, since in list(self._since.items()):
                if time.monotonic() - since > self._seconds:
                    _end(f"{nodeid} has hung for {self._seconds:g} s")


def _end(reason: str) -> None:
    """Print why, and each process that this one has started, by its state; kill them and this one."""
    out = sys.__stderr__ or sys.stderr
    pids = descendants(os.getpid())
    print(f"\n{reason}; all tests end here. Processes:", file=out)
    for pid in pids:
        print(f"{pid} {state(pid)}: {title(pid)[:150]}", file=out)
    out.flush()
    for pid in pids:  # or whoever reads their output waits for its end
        with suppress(OSError):
            os.kill(pid, signal.SIGKILL)
    os._exit(1)


def pytest_configure(config: pytest.Config) -> None:
    if not hasattr(config, "workerinput"):
        config.pluginmanager.register(HungTests(SECONDS))
