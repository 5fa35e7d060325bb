"""End the process of a command with its exit code, whatever the threads of a library still do."""

import atexit
import contextlib
import os
import sys
from collections.abc import Callable
from typing import NoReturn

from ray_jobs.guard import guarded


def run_and_exit(work: Callable[[], object]) -> NoReturn:
    """Carry out a command and end this process with its exit code, without taking Python apart.

    One of Arrow's threads may still let go of the last file that it read. Python below 3.14 ends a thread that comes
    back to it while it is taken apart, and within C++ that aborts the process: a command that had done its work ended
    with 134. So the process ends as soon as all exit functions were called. Call this before a library is imported that
    has exit functions: they are called in reverse order, so that of this function is the last.
    """
    ending = _Ending()
    atexit.register(ending)
    try:
        code: object = guarded(work)
    except SystemExit as end:
        code = end.code or 0
    if isinstance(code, int):  # a text is printed by Python, with the exit code 1
        ending.code = code
    sys.exit(code)  # type: ignore[arg-type]  # typeshed allows only what Python prints well


class _Ending:
    """Ends the process once a command has an exit code; one that failed with a bug ends as Python ends it."""

    def __init__(self) -> None:
        self.code: int | None = None

    def __call__(self) -> None:
        if self.code is None:
            return
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(Exception, SystemExit):  # what could not be written was reported before
                stream.flush()
        os._exit(self.code & 0xFF)
