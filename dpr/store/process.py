"""Which process on which machine: enough to tell on the same machine, without waiting, that a process is dead."""

import os
from pathlib import Path


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
