"""What /proc says of processes: which descend from which, what they are called, and what they do."""

import os
from pathlib import Path


def descendants(pid: int) -> list[int]:
    """Return the processes that descend from one."""
    parents = {int(entry): int(_fields(int(entry))[1]) for entry in filter(str.isdigit, os.listdir("/proc"))}
    found = [pid]
    for process in found:  # which grows
        found += [child for child, parent in parents.items() if parent == process]
    return found[1:]


def children(parent: int) -> list[int]:
    """Return the processes that another one has started."""
    found = []
    for entry in filter(str.isdigit, os.listdir("/proc")):
        its_state, its_parent = _fields(int(entry))[:2]
        if int(its_parent) == parent and its_state not in ("Z", "X"):
            found.append(int(entry))
    return found


def title(pid: int) -> str:
    """Return the command line of a process, by which Ray says what a worker does."""
    return _read(f"/proc/{pid}/cmdline").replace("\0", " ").strip()


def name_of(pid: int) -> str:
    """Return the name of a process."""
    return _read(f"/proc/{pid}/comm").strip()


def state(pid: int) -> str:
    """Return R if a process runs, S if it sleeps, T if it was stopped, …; empty if there is no such process."""
    return _fields(pid)[0]


def _fields(pid: int) -> list[str]:
    """Return what /proc says of a process after its name: state, parent, …; an empty state if there is none."""
    return _read(f"/proc/{pid}/stat").rpartition(")")[2].split() or ["", "0"]


def _read(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""  # ended meanwhile
