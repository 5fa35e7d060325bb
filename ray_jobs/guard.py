"""Turn an error of the project into a line on stderr and an exit code; nothing else does that."""

from collections.abc import Callable

from rich.console import Console

from dpr.errors import DprError


def guarded(work: Callable[[], object]) -> int:
    """Call `work` and return its exit code; a DprError becomes one line on stderr."""
    try:
        work()
    except DprError as error:
        Console(stderr=True, soft_wrap=True).print(f"error: {error}", highlight=False, markup=False)
        return error.exit_code
    return 0
