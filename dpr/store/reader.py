"""Reading parts of stored objects: a seekable file over ranged gets, for Parquet columns and row groups."""

import io
from pathlib import Path

from dpr.store.base import Store

_BUFFER_BYTES = 1 << 20


class RangedFile(io.RawIOBase):
    """A stored object as a seekable file without a buffer: each read fetches its range."""

    def __init__(self, store: Store, name: str, size_bytes: int) -> None:
        self._store, self._name = store, name
        self._size, self._position = size_bytes, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._size}[whence]
        self._position = max(0, start + offset)
        return self._position

    def tell(self) -> int:
        return self._position

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        length = min(len(buffer), self._size - self._position)
        if length <= 0:
            return 0
        data = self._store.get_range(self._name, self._position, length)
        buffer[: len(data)] = data
        self._position += len(data)
        return len(data)


def open_object(store: Store, name: str) -> Path | io.BufferedReader:
    """What pyarrow can read parts of: the path in a local store, else a file that fetches the ranges read.

    Raises MissingObjectError if there is no such object.
    """
    path = store.local_path(name)
    if path is not None:
        store.size(name)
        return path
    return io.BufferedReader(RangedFile(store, name, store.size(name)), _BUFFER_BYTES)
