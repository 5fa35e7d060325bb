"""Small pieces of local files, read many at a time without mapping them.

To map the pages around a hundred vectors and to give them back takes 0.5 ms, and to read the vectors 0.1.

Shapes: N pieces, B bytes of a piece.
"""

import math
import os
import resource
import threading
import weakref
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from dpr.errors import IntegrityError, StoreError
from dpr.store.reasons import reason_of

MAX_SHARE = 0.25
"""Of the files that this process may have open, at most so many are opened here, by all objects together."""
VERIFY = "run `dpr verify --deep`, and roll back or run the recipe again"
"""What to do if a file of a store is cut while it is open."""
_lock = threading.RLock()  # a finalizer may run within it
_open_files = 0


class SmallReads:
    """Several files, opened to read pieces of them. Any thread may use it."""

    def __init__(self, paths: Sequence[Path], files: Sequence[int], advice: str) -> None:
        """Take paths and their file descriptors, which are closed with this object, and what to do if one is cut."""
        self._paths, self._files, self._advice = paths, files, advice
        weakref.finalize(self, _close, files)

    @classmethod
    def open(cls, paths: Sequence[Path], advice: str = VERIFY) -> "SmallReads | None":
        """Open files; None if too many are open, or if one of them has gone. `advice`: what to do if one is cut."""
        limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        files: list[int] = []
        if not _count(len(paths), math.inf if limit == resource.RLIM_INFINITY else MAX_SHARE * limit):
            return None
        try:
            files.extend(os.open(path, os.O_RDONLY) for path in paths)
        except OSError:
            _count(len(files) - len(paths))
            _close(files)
            return None
        return cls(paths, files, advice)

    def pieces(
        self, files_N: npt.NDArray[np.int64], offsets_N: npt.NDArray[np.int64], size: int
    ) -> npt.NDArray[np.uint8]:
        """Return pieces (N, B) of `size` bytes, each from a file, by its place among those opened, and an offset.

        Raises IntegrityError if a file ends within a piece, StoreError if it cannot be read.
        """
        places = zip(files_N.tolist(), offsets_N.tolist(), strict=True)
        try:
            read = [os.pread(self._files[file], size, offset) for file, offset in places]
        except OSError as error:
            raise StoreError(f"a file that holds vectors cannot be read ({reason_of(error)})") from error
        data = b"".join(read)
        if len(data) != len(files_N) * size:
            place = next(place for place, piece in enumerate(read) if len(piece) != size)
            raise self._ends_early(files_N[place], int(offsets_N[place]) + size)
        return np.frombuffer(data, np.uint8).reshape(len(files_N), size)

    def piece(self, file: int, offset: int, size: int) -> bytes:
        """Return `size` bytes of a file, by its place among those opened. Raises errors as `pieces` does."""
        try:
            data = os.pread(self._files[file], size, offset)
        except OSError as error:
            raise StoreError(f"file {self._paths[file]} cannot be read ({reason_of(error)})") from error
        if len(data) != size:
            raise self._ends_early(file, offset + size)
        return data

    def _ends_early(self, file: int, end: int) -> IntegrityError:
        return IntegrityError(
            f"file {self._paths[file]} ends before byte {end:,}, which it had when it was opened; {self._advice}"
        )


def _count(more: int, most: float = math.inf) -> bool:
    """Count files that are opened or closed; return False, and count none, if more than `most` would be open."""
    global _open_files
    with _lock:
        if _open_files + more > most:
            return False
        _open_files += more
        return True


def _close(files: Sequence[int]) -> None:
    _count(-len(files))
    for file in files:
        os.close(file)
