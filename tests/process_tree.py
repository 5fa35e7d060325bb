"""Which processes descend from which."""

import contextlib
from pathlib import Path


def descendants(pid: int) -> list[int]:
    """Return the processes that descend from one."""
    parents = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):  # it has ended meanwhile
            parents[int(path.parent.name)] = int(path.read_text().rpartition(")")[2].split()[1])
    found = [pid]
    for process in found:  # which grows
        found += [child for child, parent in parents.items() if parent == process]
    return found[1:]
