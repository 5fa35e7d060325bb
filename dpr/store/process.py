"""Identities of processes, by which others on the same machine see at once that a process has ended."""

import os
import socket
from dataclasses import dataclass
from pathlib import Path
from typing import Self


@dataclass(frozen=True)
class ProcessName:
    """The identity of a process that wrote an object into a store."""

    host: str
    machine: str | None
    """This boot of this machine and its process numbering; null where the system does not tell."""
    pid: int
    process_start: str | None
    """When the process started, in kernel ticks; null where the system does not tell."""

    @classmethod
    def own(cls) -> Self:
        """Return the name of the calling process."""
        pid, machine = os.getpid(), this_machine()
        return cls(socket.gethostname(), machine, pid, process_start(pid) if machine else None)

    def is_here(self) -> bool:
        """Return whether the process ran where this one runs, so that its id means the same here."""
        return self.machine is not None and (self.machine, self.host) == (this_machine(), socket.gethostname())

    def has_ended(self) -> bool:
        """Return True only if the process has certainly ended.

        This is never certain of a process of another machine, nor of one whose entry in /proc is hidden (mount option
        hidepid) as long as any process has its id.
        """
        if not self.is_here():
            return False
        try:
            start = process_start(self.pid)
        except OSError:
            return not _exists(self.pid)
        return start is None or (self.process_start is not None and start != self.process_start)


def this_machine() -> str | None:
    """Return this boot of this machine and its process numbering, or None where the system does not tell (no /proc)."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"  # containers number their processes apart
    except OSError:
        return None


def process_start(pid: int) -> str | None:
    """Return when the process started, in kernel ticks, or None if only its exit status is left.

    Raises OSError if /proc does not show the process: it has ended, or it is another user's and hidden.
    """
    status = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    state, *fields = status.rpartition(")")[2].split()
    return None if state in "ZX" else fields[18]


def _exists(pid: int) -> bool:
    """Return whether any process, of any user, has this id."""
    try:
        os.kill(pid, 0)  # sends nothing
    except (ProcessLookupError, OverflowError):  # no process has this id, or the number is too large
        return False
    except PermissionError:  # it is another user's
        return True
    return True
