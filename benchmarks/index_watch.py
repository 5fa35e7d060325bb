"""Memory of a process and all that it starts, watched from outside."""

import json
import subprocess
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

EVERY_SECONDS = 1.0
"""Looking at all pages of all processes takes time that what is watched would have."""


@dataclass
class Peaks:
    """The most that was seen, in bytes."""

    largest: int = 0
    """Resident memory of one process."""
    together: int = 0
    """Of all processes, pages that they share counted once."""


def watched(command: Sequence[str], **environment: str) -> tuple[dict[str, Any], Peaks]:
    """Run a command whose last line of output is JSON; returns it, and the peaks of memory.

    Raises SystemExit, with what it printed, if it fails.
    """
    peaks, ended = Peaks(), threading.Event()
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment or None) as process:
        watcher = threading.Thread(target=_watch, args=(process.pid, peaks, ended))
        watcher.start()
        printed, _ = process.communicate()
        ended.set()
        watcher.join()
    if process.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{printed}")
    found: dict[str, Any] = json.loads(printed.strip().splitlines()[-1])
    return found, peaks


def _watch(root: int, peaks: Peaks, ended: threading.Event) -> None:
    while not ended.is_set():
        sums = [_memory(process) for process in _tree(root)]
        peaks.largest = max(peaks.largest, *(resident for resident, _ in sums), 0)
        peaks.together = max(peaks.together, sum(share for _, share in sums))
        time.sleep(EVERY_SECONDS)


def _tree(root: int) -> list[int]:
    """The process and its descendants."""
    children: dict[int, list[int]] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            parent = int(stat.read_text().rpartition(")")[2].split()[1])
        except (OSError, IndexError, ValueError):  # it has ended
            continue
        children.setdefault(parent, []).append(int(stat.parent.name))
    found = [root]
    for process in found:
        found += children.get(process, [])
    return found


def _memory(process: int) -> tuple[int, int]:
    """The most bytes resident so far, and those resident now, shared pages divided among those who share them."""
    folder = Path(f"/proc/{process}")
    try:
        words = [folder.joinpath(name).read_text().split() for name in ("status", "smaps_rollup")]
        peak, share = (int(found[found.index(key) + 1]) for found, key in zip(words, ("VmHWM:", "Pss:"), strict=True))
    except (OSError, ValueError):  # it has ended, or is not ours to read
        return 0, 0
    return 1024 * peak, 1024 * share
