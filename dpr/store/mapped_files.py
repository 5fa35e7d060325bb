"""Local files mapped into memory, of which this process keeps only some pages in its own memory at a time.

Pages of a mapped file belong to the system's cache, which all processes of a machine share and which the system empties
by itself. Yet the pages that a process has touched count as its memory, in the end nearly the whole of a large file. So
after a number of bytes were touched, the process gives all pages back, unless all files together are smaller than that.
The next access finds them in the system's cache, which takes about a microsecond for every 64 KiB.

Work that asks thousands of questions at once keeps more, since to give pages back stops all of its threads
(docs/log.md).
"""

import mmap
import threading
import weakref
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
import numpy.typing as npt

KEPT_BYTES = 48 * 2**20
"""Bytes of pages in this process, of all mapped files together."""
MOST_KEPT_BYTES = 2 * 2**30
"""The same within `keeping_more`."""
TOUCH_BYTES = 64 * 2**10
"""Linux maps about so many bytes around a byte that is read, and up to 2 MB of a file that was just written."""

_maps: "weakref.WeakSet[mmap.mmap]" = weakref.WeakSet()
_lock = threading.Lock()
_touched_bytes = 0
_keeping_more = 0
"""Blocks of `keeping_more` that have not ended."""


def map_file(path: Path, *, is_given_back: bool = True) -> npt.NDArray[np.uint8]:
    """Return the bytes of a file that is not empty, mapped; it stays mapped as long as any view of them lives.

    `is_given_back`: whether its pages are among those that this process gives back. Not if every question needs them.
    """
    with path.open("rb") as file:
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    with suppress(OSError):  # a system without huge pages
        mapped.madvise(mmap.MADV_NOHUGEPAGE)  # else a byte of a file just written always maps two megabytes
    if is_given_back:
        with _lock:
            _maps.add(mapped)
    return np.frombuffer(mapped, np.uint8)


@contextmanager
def keeping_more() -> Iterator[None]:
    """Keep `MOST_KEPT_BYTES` of pages in this process within the block."""
    _count_keeping(1)
    try:
        yield
    finally:
        _count_keeping(-1)
        touch(0, 0)


def _count_keeping(more: int) -> None:
    global _keeping_more
    with _lock:
        _keeping_more += more


def touch(size_bytes: int, places: int = 1) -> None:
    """Note how many bytes of mapped files were read, and from how many places; give pages back if they are many."""
    global _touched_bytes
    with _lock:
        kept_bytes = MOST_KEPT_BYTES if _keeping_more else KEPT_BYTES
        _touched_bytes += size_bytes + TOUCH_BYTES * places
        if _touched_bytes < kept_bytes:
            return
        _touched_bytes, maps = 0, list(_maps)
    if sum(map(len, maps)) < kept_bytes:
        return
    for mapped in maps:
        mapped.madvise(mmap.MADV_DONTNEED)
