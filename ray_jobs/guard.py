"""Turn an error of the project into a line on stderr and an exit code; nothing else does that."""

import sys
from collections.abc import Callable

from dpr.errors import DprError
from ray_jobs.output import console, guard_streams


def guarded(work: Callable[[], object]) -> int:
    """Call `work` and return its exit code; a DprError becomes one line on stderr."""
    guard_streams()
    try:
        try:
            work()
        finally:
            if sys.stdout is not None:
                sys.stdout.flush()
    except DprError as error:
        console(stderr=True).print(f"error: {error}", highlight=False)
        return error.exit_code
    return 0
