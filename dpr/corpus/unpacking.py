"""Compressed files: unpacking a stream in bounded memory, and the beginning of one."""

import bz2
import gzip
import io
import lzma
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO, Final, cast

import pyarrow as pa

from dpr.corpus.input_files import open_unchanged
from dpr.corpus.rows import Slice
from dpr.corpus.signatures import Compression
from dpr.errors import CorpusError

_BUFFER_BYTES: Final = 2**20
_PIECE_BYTES: Final = 2**16
_ERRORS: Final = (EOFError, zlib.error, lzma.LZMAError, pa.ArrowException, OSError)
"""Errors of the libraries for damaged data; gzip and bz2 raise OSError."""


def buffered(file: object) -> IO[bytes]:
    """Return a file with a buffer, whose `readline` is fast."""
    return io.BufferedReader(cast(io.RawIOBase, file), _BUFFER_BYTES)


@contextmanager
def unpacked(file: IO[bytes], compression: Compression, path: str) -> Iterator[IO[bytes]]:
    """Give the unpacked form of an open file; errors of unpacking in the block become CorpusError."""
    try:
        with buffered(_opened(file, compression)) as stream:
            yield stream
    except _ERRORS as error:
        problem = " ".join(str(error).split())
        raise CorpusError(
            f"corpus file {path} is damaged or cut short ({compression}: {problem}); fetch it again"
        ) from error


@contextmanager
def open_slice(slice_: Slice) -> Iterator[IO[bytes]]:
    """Open the file of a slice, unpacked; CorpusError if it changed since the run was planned, or is damaged."""
    with open_unchanged(slice_.path, slice_.identity) as file:
        if slice_.compression is None:
            # readline of a remote fsspec file is a slow loop in Python
            yield file if isinstance(file, io.BufferedReader) else buffered(file)
            return
        with unpacked(file, slice_.compression, slice_.path) as stream:
            yield stream


def unpacked_head(head: bytes, compression: Compression, max_bytes: int, *, is_whole: bool, path: str) -> bytes:
    """Unpack the first bytes of a file, to at most `max_bytes`; `is_whole`: `head` is the whole file.

    Raises CorpusError if they are damaged, or if they are the whole file and it ends too early.
    """
    found = bytearray()
    try:
        with _opened(io.BytesIO(head), compression) as stream:
            # a buffer would lose what comes before an error
            read = stream.read1 if isinstance(stream, io.BufferedIOBase) else stream.read
            while len(found) < max_bytes and (piece := read(min(_PIECE_BYTES, max_bytes - len(found)))):
                found += piece
    except _ERRORS as error:
        if not is_whole and (isinstance(error, EOFError) or found):
            return bytes(found)
        problem = " ".join(str(error).split())
        raise CorpusError(
            f"corpus file {path} is damaged or cut short ({compression}: {problem}); fetch it again"
        ) from error
    return bytes(found)


def _opened(file: IO[bytes], compression: Compression) -> io.BufferedIOBase | io.RawIOBase:
    if compression == "gzip":
        return gzip.GzipFile(fileobj=file)
    if compression == "bz2":
        return bz2.BZ2File(file)
    if compression == "xz":
        return lzma.LZMAFile(file)
    # Python has these two only from 3.14 on
    return _ArrowUnpacked(file, compression)


class _ArrowUnpacked(io.RawIOBase):
    """Unpacks by pyarrow, which refuses a stream that ends too early only when more is read."""

    def __init__(self, file: IO[bytes], compression: Compression) -> None:
        self._stream = pa.CompressedInputStream(pa.PythonFile(file, "r"), compression)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: object) -> int:
        view = memoryview(buffer)  # type: ignore[arg-type]
        data = self._stream.read(len(view))
        view[: len(data)] = data
        return len(data)
