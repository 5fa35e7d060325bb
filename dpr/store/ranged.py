"""Reading parts of stored objects: a seekable file over ranged gets, for Parquet columns and row groups.

Parquet's footer is at the end, and is read first. So the last bytes can be handed over when a file is opened: whoever
asks for them needs no request of his own to learn that the object has the size it should have.
"""

import io

from dpr.errors import StoreError
from dpr.store.base import Store

_BUFFER_BYTES = 1 << 20


class RangedFile(io.RawIOBase):
    """Read a stored object as a seekable file without a buffer: each read fetches its range.

    `tail` are its last bytes if they are known already; they are not fetched again.
    """

    def __init__(self, store: Store, name: str, size_bytes: int, tail: bytes = b"") -> None:
        self.store = store
        self.name = name
        self.size_bytes = size_bytes
        self._tail = tail
        self._position = 0

    def buffered(self) -> io.BufferedReader:
        """Return this file behind a buffer of 1 MiB, so that small reads do not become a request each."""
        return io.BufferedReader(self, _BUFFER_BYTES)

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
        known_from = self.size_bytes - len(self._tail)
        if self._position >= known_from:
            first = self._position - known_from
            data = self._tail[first : first + length]
        else:
            data = self.store.get_range(self.name, self._position, length)
        if len(data) != length:
            raise StoreError(
                f"store {self.store.url}, object {self.name} ends before its {self.size_bytes} bytes; something "
                "replaced it while it was read, start again"
            )
        buffer[:length] = data
        self._position += length
        return length
