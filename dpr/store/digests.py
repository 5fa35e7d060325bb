"""The digests of local files, remembered on this machine until the files change.

Each is a small file in `digests/` of the cache's folder, named by the path of the hashed file. It is valid while that
file's size, modification time, inode and device are those that it had when it was hashed.
"""

import contextlib
import hashlib
import os
import re
import time
from pathlib import Path

from dpr.errors import MissingObjectError, StoreError
from dpr.store.cache_folder import CacheFolder
from dpr.store.reasons import reason_of

_DIGESTS = "digests"
MAX_RECORDS_PER_FOLDER = 64
"""In each of 256 folders; if there are more, the least recently used half is removed."""
GRANULARITY_NS = 2 * 10**9
"""Modification times may be this coarse: a file that is changed twice within it can show the same time."""
_RECORD = re.compile(r"(\d+ -?\d+ \d+ \d+) ([0-9a-f]{64})\n")


class DigestMemory:
    """The digests of local files: each file is hashed once, however many processes of this machine need its digest."""

    def __init__(self, place: CacheFolder) -> None:
        self._place = place

    def digest(self, path: Path) -> str:
        """Return the hex SHA-256 of a file. Raises MissingObjectError if there is no such file.

        Processes that need it at the same time hash the file once. Where nothing can be remembered, each hashes it.
        """
        path = path.absolute()
        try:
            known = self._recall(path)
            if known is not None:
                return known
            with self._place.alone(f"digest {path}"):
                return self._recall(path) or self._hash(path)
        except FileNotFoundError as error:
            raise MissingObjectError(f"file {path} is not there (any more)") from error
        except OSError as error:
            raise StoreError(f"file {path} cannot be read ({reason_of(error)})") from error

    def _recall(self, path: Path) -> str | None:
        """Return the digest of the file as it is now, or None if it is not remembered."""
        identity, record = _identity(path.stat()), self._record(path)
        with contextlib.suppress(OSError, ValueError):
            found = _RECORD.fullmatch(record.read_text(encoding="ascii"))
            if found and found[1] == identity:
                with contextlib.suppress(OSError):
                    os.utime(record)  # it was used now
                return found[2]
        return None

    def _hash(self, path: Path) -> str:
        """Return the file's digest, and remember it unless the file may have changed after it was read."""
        started_ns = time.time_ns()
        with path.open("rb") as file:
            status = os.fstat(file.fileno())
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
        # any change of the file from `started_ns` on gives it another modification time than this
        if status.st_mtime_ns <= started_ns - GRANULARITY_NS:
            with contextlib.suppress(OSError):  # a digest that cannot be remembered is still right
                self._remember(self._record(path), f"{_identity(status)} {sha256}\n")
        return sha256

    def _remember(self, record: Path, text: str) -> None:
        self._place.write(record, text)
        records = list(record.parent.iterdir())
        if len(records) > MAX_RECORDS_PER_FOLDER:
            for path in sorted(records, key=lambda path: path.stat().st_mtime)[: len(records) // 2]:
                path.unlink(missing_ok=True)

    def _record(self, path: Path) -> Path:
        name = hashlib.sha256(os.fsencode(path)).hexdigest()
        return self._place.path / _DIGESTS / name[:2] / name[2:]


def _identity(status: os.stat_result) -> str:
    return f"{status.st_size} {status.st_mtime_ns} {status.st_ino} {status.st_dev}"
