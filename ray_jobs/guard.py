"""Turn an error of the project, or a signal, into a line on stderr and an exit code; nothing else does that."""

import os
import signal
import sys
from collections.abc import Callable

from dpr.errors import DprError, RecipeError
from ray_jobs.output import console, guard_streams
from ray_jobs.signals import Stop, stopping_signals
from ray_jobs.stand_ins import stand_in


def guarded(work: Callable[[], object]) -> int:
    """Call `work` and return its exit code; a DprError becomes one line on stderr."""
    guard_streams()
    stop = Stop()
    try:
        try:
            _check_surroundings()
            with stopping_signals(stop):
                work()
        finally:
            if sys.stdout is not None:
                sys.stdout.flush()
    except (DprError, SystemExit, KeyboardInterrupt) as end:
        if stop.signal is not None:
            return _print_stop(stop.signal)
        if isinstance(end, DprError):
            return _print_error(end)
        raise
    except Exception as error:
        if (file := stand_in(error)) is None:
            raise
        return _print_error(
            RecipeError(
                f"{file} is imported in place of the library of that name, since its folder is in PYTHONPATH; rename "
                "it, or take the folder out of PYTHONPATH"
            )
        )
    return 0


def _print_stop(by: signal.Signals) -> int:
    what = f"stopped by {by.name}; finished work is kept, so start the same command again to go on"
    console(stderr=True).print(what, highlight=False)
    return 128 + by


def _print_error(error: DprError) -> int:
    console(stderr=True).print(f"error: {error}", highlight=False)
    return error.exit_code


def _check_surroundings() -> None:
    """Raise RecipeError where no command can work, before a library fails with a message that does not say why."""
    try:
        os.getcwd()
    except OSError as error:
        raise RecipeError("the current folder is not there any more; change to another one, and start again") from error
    if sys.flags.optimize > 1:
        raise RecipeError(
            "Python leaves out docstrings (-OO or PYTHONOPTIMIZE=2), which Ray needs; leave that option out"
        )
