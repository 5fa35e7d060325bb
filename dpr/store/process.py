"""Which process on which machine: enough to tell on the same machine, without waiting, that a process is dead."""

import os
import socket
from dataclasses import dataclass
from pathlib import Path
from typing import Self


@dataclass(frozen=True)
class ProcessName:
    """A process that wrote something into a store."""

    host: str
    machine: str | None
    """This boot of this machine and its process numbering; null where the system does not tell."""
    pid: int
    process_start: str | None

    @classmethod
    def mine(cls) -> Self:
        """The calling process."""
        pid = os.getpid()
        return cls(socket.gethostname(), this_machine(), pid, process_start(pid))

    def is_here(self) -> bool:
        """Whether it ran where this process runs, so that its id means the same here."""
        return self.machine is not None and (self.machine, self.host) == (this_machine(), socket.gethostname())

    def has_ended(self) -> bool:
        """True if it certainly has: of other machines' processes nothing is known."""
        return self.is_here() and process_start(self.pid) != self.process_start


def this_machine() -> str | None:
    """This boot of this machine and its process numbering; None where the system does not tell (no /proc)."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"  # containers number their processes apart
    except OSError:
        return None


def process_start(pid: int) -> str | None:
    """When the process with this id started, in kernel ticks; None if there is none or only its exit status is left."""
    try:
        status = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    state, *fields = status.rpartition(")")[2].split()
    return None if state in "ZX" else fields[18]
