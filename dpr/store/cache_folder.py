"""A folder that any number of processes write at once: unfinished files, locks, and leftovers of dead processes.

Everything that is unfinished lies in `temporary/` under a random name, so that no two processes of any container or
host share one. A finished file is renamed to its place, and what is to be removed is first renamed away from it.
"""

import contextlib
import fcntl
import hashlib
import os
import re
import shutil
import stat
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

from dpr.errors import StoreError
from dpr.store.reasons import reason_of

_TEMPORARY = "temporary"
_OWN_NAME = re.compile(r"[0-9a-f]{32}|[0-9a-f]{64}\.lock")
LEFTOVER_SECONDS = 86_400.0
"""Anything in `temporary/` that is unchanged for this time was left by a process that died."""


class CacheFolder:
    """A folder that processes share: places to work in, and locks. It is made on the first write."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._temporary = path / _TEMPORARY

    @contextlib.contextmanager
    def scratch(self) -> Iterator[Path]:
        """Make a new folder for unfinished files, and remove it at the end with everything that is still in it."""
        scratch = self._temporary / uuid.uuid4().hex
        with self.explained():
            scratch.mkdir(parents=True)
        try:
            yield scratch
        finally:
            shutil.rmtree(scratch, ignore_errors=True)

    def write(self, path: Path, text: str) -> None:
        """Write a small file, whole or not at all. Raises OSError."""
        unfinished = self._temporary / uuid.uuid4().hex
        for folder in (self._temporary, path.parent):
            folder.mkdir(parents=True, exist_ok=True)
        try:
            unfinished.write_text(text, encoding="ascii")
            os.replace(unfinished, path)
        finally:
            unfinished.unlink(missing_ok=True)

    @contextlib.contextmanager
    def alone(self, work: str) -> Iterator[None]:
        """Wait until no other process does `work`, and keep others from it; without effect if there are no locks."""
        path = self._temporary / f"{hashlib.sha256(os.fsencode(work)).hexdigest()}.lock"
        with contextlib.suppress(OSError):
            self._temporary.mkdir(parents=True, exist_ok=True)
        with _locked(path, os.O_RDWR | os.O_CREAT, fcntl.LOCK_EX):
            try:
                yield
            finally:
                # a process that gets this lock first checks whether the work is done, so a second lock does no harm
                with contextlib.suppress(OSError):
                    path.unlink()

    @contextlib.contextmanager
    def shared_lock(self) -> Iterator[None]:
        """Keep others from `exclusive_lock`; without effect where there are no locks."""
        with _locked(self.path, os.O_RDONLY, fcntl.LOCK_SH):
            yield

    @contextlib.contextmanager
    def exclusive_lock(self) -> Iterator[None]:
        """Keep others from both locks; without effect where there are no locks."""
        with _locked(self.path, os.O_RDONLY, fcntl.LOCK_EX):
            yield

    @contextlib.contextmanager
    def explained(self) -> Iterator[None]:
        """Turn an OSError into one sentence that says what to do."""
        try:
            yield
        except OSError as error:
            raise StoreError(
                f"the cache folder {self.path} cannot be used ({reason_of(error)}); set DPR_CACHE to a folder "
                "that can be written"
            ) from error

    def remove_leftovers(self) -> None:
        """Remove the unfinished files of processes that died."""
        before = time.time() - LEFTOVER_SECONDS
        for path in self._temporary.iterdir():
            if _OWN_NAME.fullmatch(path.name) and measure(path)[1] < before:
                # if several users share a folder, each can remove only its own leftovers
                shutil.rmtree(path, ignore_errors=True)
                with contextlib.suppress(OSError):
                    path.unlink()


def measure(path: Path) -> tuple[int, float]:
    """Return the bytes of a file or of all files in a folder, and when any of them was last modified."""
    inside = [Path(folder, name) for folder, _, files in os.walk(path) for name in (*files, ".")]
    size_bytes, modified = 0, 0.0
    for one in (path, *inside):
        with contextlib.suppress(FileNotFoundError):
            status = one.lstat()
            size_bytes += status.st_size if stat.S_ISREG(status.st_mode) else 0
            modified = max(modified, status.st_mtime)
    return size_bytes, modified


@contextlib.contextmanager
def _locked(path: Path, flags: int, kind: int) -> Iterator[None]:
    """Hold a lock on a file or folder; without effect where it cannot be opened or its filesystem has no locks."""
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(OSError):
            descriptor = os.open(path, flags | os.O_CLOEXEC, 0o666)
            stack.callback(os.close, descriptor)
            fcntl.flock(descriptor, kind)
            stack.callback(fcntl.flock, descriptor, fcntl.LOCK_UN)  # closing is not enough after a fork
        yield
