"""Whether processors of this machine have nothing to do, which Linux says in some microseconds."""

import os
import sys
import weakref
from contextlib import suppress
from pathlib import Path

_LOADAVG, _QUOTA = "/proc/loadavg", Path("/sys/fs/cgroup/cpu.max")


class IdleProcessors:
    """Asks Linux. The file stays open, since to open it takes longer than to read it."""

    def __init__(self) -> None:
        self._file: int | None = None
        if sys.platform.startswith("linux") and _has_all_processors():
            with suppress(OSError):  # some sandboxes hide it
                self._file = os.open(_LOADAVG, os.O_RDONLY | os.O_CLOEXEC)
                weakref.finalize(self, os.close, self._file)

    def are_there(self, processors: int) -> bool:
        """Return whether so many are idle at this moment, besides that of the thread that asks; False if unknown.

        Linux counts threads that compute or wait for a processor, of all programs and whatever their priority.
        """
        if self._file is None:
            return False
        running = os.pread(self._file, 64, 0).partition(b"/")[0].rpartition(b" ")[2]
        return int(running) + processors <= (os.cpu_count() or 1)


def _has_all_processors() -> bool:
    """Return whether this process may use all processors all the time: otherwise Linux's numbers are about others."""
    quota = "max"
    with suppress(OSError):
        quota, _, _ = _QUOTA.read_text(encoding="ascii").partition(" ")
    return quota == "max" and len(os.sched_getaffinity(0)) == os.cpu_count()
