"""The one place where errors of the project become a line on stderr and an exit code."""

from collections.abc import Callable

from rich.console import Console

from dpr.errors import DprError


def guarded(work: Callable[[], object]) -> int:
    """Call `work`; a DprError becomes one line on stderr and its exit code."""
    try:
        work()
    except DprError as error:
        Console(stderr=True, soft_wrap=True).print(f"error: {error}", highlight=False, markup=False)
        return error.exit_code
    return 0
