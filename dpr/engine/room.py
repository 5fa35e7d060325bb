"""Check, before a unit's work begins, that the machine has the disk space and the memory that it needs.

A need is a lower bound of what the unit really takes, and free space is counted generously. So a unit that would have
fitted is never refused. A unit that is accepted may still run out of space, since others work at the same time.
"""

import os
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from dpr.errors import RoomError
from dpr.store import Store
from dpr.store.cache import local_cache
from dpr.store.temporary import OTHER_CACHE, OTHER_TEMPORARY, temporary_root

_ROOT = Path("/")
_DROPPABLE = ("inactive_file", "active_file", "slab_reclaimable")
"""Fields of a control group's memory.stat: bytes that the kernel gives up when memory is short."""


@dataclass(frozen=True)
class Need:
    """The least that a unit takes while it works; 0: too little to check."""

    temporary_bytes: int = 0
    """In the folder for temporary files."""
    store_bytes: int = 0
    """In the folder of a local store; a remote store needs no disk of this machine."""
    cache_bytes: int = 0
    """In the folder of this machine's cache."""
    memory_bytes: int = 0
    smaller: str = ""
    """How to make such units smaller, as an imperative."""


def check_room(store: Store, stage: str, record: str, need: Need) -> None:
    """Raise RoomError unless this machine has what the unit of a record needs. It takes about a millisecond."""
    unit = f"stage {stage} cannot do {record} on {socket.gethostname()}: it needs about"
    for disk in _disks(store, record, need):
        if disk.needed_bytes > disk.free_bytes:
            raise RoomError(
                f"{unit} {_amount(disk.needed_bytes)} of disk for {' and '.join(disk.places)}, and "
                f"{_amount(disk.free_bytes)} are free; {_advice('free disk space', *disk.advice, need.smaller)}"
            )
    available_bytes = memory_available() if need.memory_bytes else None
    if available_bytes is not None and need.memory_bytes > available_bytes:
        raise RoomError(
            f"{unit} {_amount(need.memory_bytes)} of memory, and {_amount(available_bytes)} are available; "
            f"{_advice('give the worker more memory', need.smaller)}"
        )


@dataclass
class _Disk:
    """A file system, and how much a unit will write there."""

    free_bytes: int
    needed_bytes: int
    places: list[str]
    advice: list[str]


def _disks(store: Store, record: str, need: Need) -> list[_Disk]:
    """Return the need on each file system: several folders may share one."""
    in_store = store.local_path(record) if need.store_bytes else None
    wanted = (
        ("temporary files", temporary_root() if need.temporary_bytes else None, need.temporary_bytes, OTHER_TEMPORARY),
        ("the store", in_store, need.store_bytes, ""),
        ("the cache", local_cache().folder if need.cache_bytes else None, need.cache_bytes, OTHER_CACHE),
    )
    disks: dict[int, _Disk] = {}
    for name, path, needed_bytes, advice in wanted:
        folder = path and _existing(path)
        if not folder:
            continue
        free_bytes = _free_bytes(folder)
        if free_bytes is not None:
            disk = disks.setdefault(folder.stat().st_dev, _Disk(free_bytes, 0, [], []))
            disk.needed_bytes += needed_bytes
            disk.places.append(f"{name} in {folder}")
            disk.advice += [advice] * bool(advice)
    return list(disks.values())


def _existing(path: Path) -> Path | None:
    """Return the nearest existing folder at or above a path; None if none can be examined."""
    try:
        return next((folder for folder in (path, *path.parents) if folder.is_dir()), None)
    except OSError:
        return None  # writing there will tell why


def _free_bytes(folder: Path) -> int | None:
    """Return the bytes that this user may still write in a folder; None where the file system does not say."""
    try:
        status = os.statvfs(folder)
    except OSError:
        return None  # writing there will tell why
    blocks = status.f_bfree if os.geteuid() == 0 else status.f_bavail  # some blocks are kept for root
    return blocks * status.f_frsize if status.f_blocks else None


def memory_available(root: Path = _ROOT) -> int | None:
    """Return the bytes of memory that this process may take, and those that it holds; None: unknown.

    It is what the machine has available or what the limits of the process's control groups leave, whichever is less.
    Pages that can be dropped, swap, and what this process has freed but not returned count as available. `root` is
    where `proc` and `sys` are mounted.
    """
    machine = _sizes(root / "proc/meminfo")
    if "MemAvailable" not in machine:  # not Linux
        return None
    own_bytes = memory_held(root) + machine.get("SwapFree", 0)
    return min([machine["MemAvailable"], *_left_by_limits(root)]) + own_bytes


def memory_held(root: Path = _ROOT) -> int:
    """Return the bytes of memory that this process holds and `memory_available` counts; 0: unknown."""
    return _sizes(root / "proc/self/status").get("RssAnon", 0)


def _left_by_limits(root: Path) -> Iterator[int]:
    """Yield the memory left in each control group of this process that has a limit, in version 2 and version 1."""
    for line in _lines(root / "proc/self/cgroup"):
        _, controllers, path = line.split(":", 2)
        if not controllers:
            names = ("memory.max", "memory.current", "")
            base = root / "sys/fs/cgroup"
        elif "memory" in controllers.split(","):
            names = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_")
            base = root / "sys/fs/cgroup/memory"
        else:
            continue
        limit_name, used_name, prefix = names
        group = base / path.lstrip("/")
        for folder in (group, *group.parents):  # the limits of all groups above apply, too
            limit, used = (" ".join(_lines(folder / name)) for name in (limit_name, used_name))
            if limit.isdecimal() and used.isdecimal():  # otherwise "max", or there is no such file
                fields = dict(line.split() for line in _lines(folder / "memory.stat"))
                droppable = sum(int(fields.get(prefix + name, 0)) for name in _DROPPABLE)
                yield int(limit) - int(used) + droppable
            if folder == base:
                break


def _sizes(path: Path) -> dict[str, int]:
    """Return the sizes in a file of /proc with lines `NAME: NUMBER kB`, in bytes."""
    fields = (line.split() for line in _lines(path) if line.endswith(" kB"))
    return {name.rstrip(":"): int(kilobytes) << 10 for name, kilobytes, _ in fields}


def _lines(path: Path) -> list[str]:
    """Return the lines of a small file; none if it cannot be read."""
    try:
        return path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []


def _amount(size_bytes: int) -> str:
    for unit_bytes, unit in ((1e9, "GB"), (1e6, "MB")):
        if size_bytes >= unit_bytes:
            return f"{size_bytes / unit_bytes:,.1f} {unit}"
    return f"{size_bytes / 1e3:,.1f} KB"


def _advice(*remedies: str) -> str:
    """Join the remedies that are not empty."""
    *others, last = [remedy for remedy in remedies if remedy]
    return f"{', '.join(others)}, or {last}" if others else last
