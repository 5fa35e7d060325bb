"""Reading parts of stored objects: a seekable file over ranged gets, for Parquet columns and row groups.

Parquet's footer is at the end, and is read first. So the last bytes can be passed in when a file is opened: the request
that fetched them has also shown that the object has the expected size.
"""

import io

from dpr.errors import StoreError
from dpr.store.base import Store

_AHEAD_BYTES = 1 << 18
"""Least bytes to fetch at once, so that small reads do not become a request each; less than the hashes of a row
group."""


class RangedFile(io.RawIOBase):
    """A stored object as a seekable file: each read that is not small fetches its range in one request.

    `tail` are its last bytes if they are known already; they are not fetched again.
    """

    def __init__(self, store: Store, name: str, size_bytes: int, tail: bytes = b"") -> None:
        self.store = store
        self.name = name
        self.size_bytes = size_bytes
        self._position = 0
        self._tail, self._tail_start = tail, size_bytes - len(tail)
        self._ahead, self._ahead_start = b"", 0

    def buffered(self) -> io.BufferedReader:
        """Return this file with the methods of a buffered one; its buffer holds nothing, so a read stays one read."""
        return io.BufferedReader(self, 1)

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self.size_bytes}[whence]
        self._position = max(0, start + offset)
        return self._position

    def tell(self) -> int:
        return self._position

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        length = min(len(buffer), self.size_bytes - self._position)
        if length <= 0:
            return 0
        data = self._known(length) or self._fetch(length)
        if len(data) != length:
            raise StoreError(
                f"store {self.store.url}, object {self.name} ends before its {self.size_bytes} bytes; something "
                "replaced it while it was read, start again"
            )
        buffer[:length] = data
        self._position += length
        return length

    def _known(self, length: int) -> bytes:
        """Return this many bytes from here on if they are in memory, else none."""
        for held, start in ((self._tail, self._tail_start), (self._ahead, self._ahead_start)):
            first = self._position - start
            if first >= 0 and first + length <= len(held):
                return held[first : first + length]
        return b""

    def _fetch(self, length: int) -> bytes:
        """Fetch this many bytes from here on, or more if they are few: the next bytes are usually needed, too."""
        if length >= _AHEAD_BYTES:
            return self.store.get_range(self.name, self._position, length)
        wanted = min(_AHEAD_BYTES, self.size_bytes - self._position)
        self._ahead = self.store.get_range(self.name, self._position, wanted)
        self._ahead_start = self._position
        return self._ahead[:length]
