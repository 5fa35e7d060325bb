"""What a process and all that it started take, watched from outside; and the objects that a store holds."""

import re
from collections.abc import Iterator
from pathlib import Path


def objects_of(store: Path) -> set[Path]:
    return {path for path in store.rglob("*") if path.is_file()}


def with_descendants(pid: int) -> Iterator[int]:
    """Yield a process, if it runs, and all that descend from it."""
    parents = dict(all_processes())
    for process in parents:
        line = [process]
        while line[-1] in parents and line[-1] != pid:
            line.append(parents[line[-1]])
        if line[-1] == pid:
            yield process


def all_processes() -> Iterator[tuple[int, int]]:
    """(process, its parent) of all that run."""
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            yield int(path.parent.name), int(path.read_text().rpartition(")")[2].split()[1])
        except OSError:
            continue  # it ended meanwhile


def name_and_peak(process: int) -> tuple[str, int]:
    try:
        name = Path(f"/proc/{process}/cmdline").read_text().split("\0")[0].split("(")[0]
        found = re.search(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{process}/status").read_text())
    except OSError:
        return "", 0
    return Path(name).name, int(found[1]) * 1024 if found else 0
