"""This machine's cache: copies of stored objects, folders of models, and the digests of local files.

`local_cache` takes its place and its bound from the environment. Its folder contains the following, and nothing else
there is touched:

entries/KEY            a cached file, whose access time says when it was last used
entries/KEY.folder/    a cached folder, whose modification time says so; it is added and removed as a whole
digests/               remembered digests: some ten thousand tiny files at most (see dpr.store.digests)
temporary/             unfinished files and locks (see dpr.store.cache_folder)

After each insertion the least recently used entries are removed until the rest is within the bound. An entry that was
used in the last ten minutes always stays, so that a process that was given its path can open it. The bound is exceeded
by such entries if they alone are larger, and by files that are being written. Removing a file that another process has
open or mapped does it no harm.
"""

import contextlib
import errno
import math
import os
import re
import stat
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from dpr.errors import RecipeError, StoreError
from dpr.store.cache_folder import CacheFolder, measure
from dpr.store.digests import GRANULARITY_NS, DigestMemory
from dpr.store.temporary import OTHER_CACHE, full_disk_explained

DEFAULT_GB = 50.0
IN_USE_SECONDS = 600.0
"""An entry that was used within this time is not removed."""
_ENTRIES = "entries"
_FOLDER_SUFFIX = ".folder"
_KEY_PART = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]*")


def local_cache() -> "Cache":
    """Return this machine's cache as the environment describes it now.

    Its folder is $DPR_CACHE, else $XDG_CACHE_HOME/dpr, else ~/.cache/dpr. Its bound is $DPR_CACHE_GB times 10^9
    bytes, 50 by default. Raises RecipeError if that is not a positive number, StoreError if there is no home folder.
    """
    return Cache(_folder(), _max_bytes())


class Cache:
    """Files and folders on this machine that can be made again."""

    def __init__(self, folder: Path, max_bytes: int) -> None:
        self.folder = folder
        self.max_bytes = max_bytes
        self._place = CacheFolder(folder)
        self._digests = DigestMemory(self._place)

    def fetch(self, key: str, make: Callable[[Path], None]) -> Path:
        """Return the cached file `key`; where it is absent, `make` first writes it under the path that it is given.

        The file appears whole or not at all. Of processes that need it at the same time one makes it and the others
        wait; where the filesystem has no locks, each makes it and all end up with a whole file.
        """
        return self._fetch(self._path(key), make, is_folder=False)

    def fetch_folder(self, key: str, make: Callable[[Path], None]) -> Path:
        """Return the cached folder `key`; where it is absent, `make` first fills the empty folder that it is given.

        The folder appears whole or not at all, as with `fetch`.
        """
        return self._fetch(self._path(key, _FOLDER_SUFFIX), make, is_folder=True)

    def find(self, key: str) -> Path | None:
        """Return the cached file `key`, or None where it is absent."""
        path = self._path(key)
        return path if self._mark_used(path, is_folder=False) else None

    def remove(self, key: str) -> None:
        """Remove the file or folder `key`; it is no error if there is none."""
        file, folder = self._path(key), self._path(key, _FOLDER_SUFFIX)
        with self._place.explained():
            for path in (file,) * file.is_file() + (folder,) * folder.is_dir():
                self._discard(path, unless_in_use=False)

    def digest(self, path: Path) -> str:
        """Return the hex SHA-256 of a local file, in the cache or not; it is remembered until the file changes.

        Raises MissingObjectError if there is no such file.
        """
        return self._digests.digest(path)

    def _path(self, key: str, suffix: str = "") -> Path:
        parts = key.split("/")
        is_plain = all(_KEY_PART.fullmatch(part) and not part.endswith(_FOLDER_SUFFIX) for part in parts)
        if not is_plain:
            raise StoreError(
                f"cache key {key!r} cannot be used; write parts of letters, digits, '.', '_' and '-' between slashes"
            )
        return self.folder / _ENTRIES / f"{key}{suffix}"

    def _fetch(self, path: Path, make: Callable[[Path], None], *, is_folder: bool) -> Path:
        if not self._mark_used(path, is_folder):
            with self._place.alone(f"fetch {path}"):
                if not self._mark_used(path, is_folder):
                    self._insert(path, make, is_folder)
        return path

    def _mark_used(self, path: Path, is_folder: bool) -> bool:
        """Return whether the entry exists, and record that it is used now."""
        with self._place.explained(), self._place.shared_lock():
            with contextlib.suppress(OSError):  # a process that may not write the cache removes nothing from it either
                now = time.time_ns()
                os.utime(path, ns=(now, now if is_folder else path.stat().st_mtime_ns))
            return path.is_dir() if is_folder else path.is_file()

    def _insert(self, path: Path, make: Callable[[Path], None], is_folder: bool) -> None:
        with self._place.scratch() as scratch:
            unfinished = scratch / path.name
            if is_folder:
                with self._place.explained():
                    unfinished.mkdir()
            with full_disk_explained(self.folder, OTHER_CACHE):
                make(unfinished)
            with self._place.explained():
                # From now on the content never changes. An older modification time lets the digest of a file be
                # remembered at once, and it still shows if somebody does change the content.
                now = time.time_ns()
                os.utime(unfinished, ns=(now, now if is_folder else now - GRANULARITY_NS))
                path.parent.mkdir(parents=True, exist_ok=True)
                try:
                    os.rename(unfinished, path)
                except OSError as error:
                    if not is_folder or error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                        raise  # otherwise another process was first, and its folder is equivalent
        with self._place.explained():
            self._place.remove_leftovers()
            self._evict()

    def _evict(self) -> None:
        """Remove the least recently used entries until the rest is within the bound."""
        entries = sorted(self._entries(), key=lambda entry: entry.used)
        excess_bytes = sum(entry.size_bytes for entry in entries) - self.max_bytes
        for entry in entries:
            if excess_bytes <= 0:
                return
            if not _is_in_use(entry.used) and self._discard(entry.path, unless_in_use=True):
                excess_bytes -= entry.size_bytes

    def _entries(self) -> Iterator["_Entry"]:
        for folder, subfolders, files in os.walk(self.folder / _ENTRIES, onerror=_refuse):
            whole = [name for name in subfolders if name.endswith(_FOLDER_SUFFIX)]
            subfolders[:] = [name for name in subfolders if name not in whole]
            for path in (Path(folder, name) for name in (*files, *whole)):
                with contextlib.suppress(FileNotFoundError):  # another process removed it
                    yield _Entry(path, measure(path)[0], _last_used(path))

    def _discard(self, path: Path, *, unless_in_use: bool) -> bool:
        """Remove an entry, whole and at once; return whether it is gone."""
        with self._place.scratch() as scratch:
            try:
                with self._place.exclusive_lock():
                    if unless_in_use and _is_in_use(_last_used(path)):
                        return False
                    os.rename(path, scratch / path.name)
            except FileNotFoundError:
                return True  # another process removed it
        if scratch.exists():
            raise StoreError(f"{scratch} cannot be removed; remove it by hand, or set DPR_CACHE to another folder")
        return True


@dataclass(frozen=True)
class _Entry:
    """A cached file or folder."""

    path: Path
    size_bytes: int
    used: float


def _last_used(path: Path) -> float:
    status = path.stat()
    # the access time of a folder is useless: scanning the cache sets it
    return status.st_mtime if stat.S_ISDIR(status.st_mode) else status.st_atime


def _is_in_use(used: float) -> bool:
    return abs(time.time() - used) < IN_USE_SECONDS  # a time far in the future is not a time of use


def _refuse(error: OSError) -> None:
    if not isinstance(error, FileNotFoundError):  # another process removed it
        raise error


def _folder() -> Path:
    place, base = os.environ.get("DPR_CACHE", ""), os.environ.get("XDG_CACHE_HOME", "")
    try:
        if place:
            return Path(place).expanduser().absolute()
        if os.path.isabs(base):  # the XDG specification ignores relative paths
            return Path(base, "dpr")
        return Path.home().absolute() / ".cache" / "dpr"
    except (OSError, RuntimeError) as error:
        raise StoreError(f"there is no folder for the cache ({error}); set HOME or DPR_CACHE to one") from error


def _max_bytes() -> int:
    text = os.environ.get("DPR_CACHE_GB") or str(DEFAULT_GB)
    try:
        gigabytes = float(text)
    except ValueError:
        gigabytes = math.nan
    if not 0.0 < gigabytes < math.inf:
        raise RecipeError(f"DPR_CACHE_GB is {text!r}; set it to a positive number of gigabytes, such as 50")
    return int(gigabytes * 1e9)
