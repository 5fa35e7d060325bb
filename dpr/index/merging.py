"""Merging parts into an index file, which is written range by range and never held in memory.

Lists are merged in order. For a range of lists that fits the buffer, the codes of that range are read from several
parts at once, dead rows are left out, and the range is written. Within a list, vectors keep the order of the parts and
of their rows. So the file equals that of an index to which one process adds the live vectors in that order.

Ids are `segment_number << 32 | row`.

Shapes: L lists, N vectors, n vectors of a range of lists in one part, D dimensions, B bytes of a code.
"""

import contextlib
import os
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import faiss
import numpy as np
import numpy.typing as npt

from dpr.errors import IndexBuildError, IntegrityError
from dpr.index.faiss_file import write_faiss
from dpr.index.hardware import Codes, as_float32
from dpr.index.invlists import ListWriter, list_writer
from dpr.index.kinds import Storage, copy_index, core, set_ntotal, storage
from dpr.index.part import PartFile, PartSource
from dpr.store import PARALLEL_READS

ROW_BITS = 32
ROW_MASK = (1 << ROW_BITS) - 1
MAX_SEGMENT_NUMBER = 2**31 - 1
BUFFER_BYTES = 64 * 2**20
MIN_ENCODERS, MAX_ENCODERS = 2, 8
"""Ranges of lists that are encoded at once, between which the CPUs decide."""
ADD_ROWS = 32_768

Rows = npt.NDArray[np.int64]


@dataclass(frozen=True)
class PartRef:
    """A part to be merged."""

    segment_number: int
    file: PartSource
    """A part file whose checksum was verified."""
    rows: int
    """Rows of the segment, dead ones included."""
    dead_rows: npt.NDArray[np.uint32]
    """Rows to leave out, ascending."""
    codebook_sha256: str
    """Digest of the bytes of the codebook that it is merged under; a part that was coded with another is refused."""


def merge(codebook: faiss.Index, parts: Iterable[PartRef], path: Path, buffer_bytes: int = BUFFER_BYTES) -> int:
    """Merge parts, in the given order, into a FAISS index file at `path`; return the number of vectors in it.

    The same codebook and parts give the same bytes. With inverted lists, memory holds nine times the buffer (or the
    largest list, if that is more; up to 27 times from 16 CPUs on), the codebook, and four bytes per list and part;
    without lists, it holds the index.
    Raises IntegrityError, with both numbers or digests, for a part that does not fit its segment or the codebook, and
    IndexBuildError for a kind that cannot be merged or a disk that fills up. No file is left after an error.
    """
    if storage(codebook) is Storage.WHOLE:
        raise IndexBuildError(
            f"an index of kind {type(core(codebook)).__name__} cannot be merged from parts; build it whole"
        )
    with ThreadPoolExecutor(PARALLEL_READS) as pool:
        live = list(pool.map(partial(_LivePart, codebook), parts))
        numbers = [part.segment_number for part in live]
        if len(set(numbers)) != len(numbers):
            raise IntegrityError(f"parts of segments {numbers} are to be merged; each segment may come once")
        if storage(codebook) is Storage.CODES:
            return _merge_codes(codebook, live, path)
        with _whole_or_gone(path) as file:
            writer = list_writer(codebook)
            return _merge_lists(writer, _Parts(live, writer.lists, pool), file, buffer_bytes)


def build_whole(
    codebook: faiss.Index, segments: Iterable[tuple[int, Rows, npt.NDArray[np.float16]]], path: Path
) -> int:
    """Build an index of any kind from all live vectors, in this process, and write it to `path`; return their number.

    `segments` yields the number of each, its live rows (N,) and their vectors (N, D). The codebook is not changed.
    Graphs are built by several threads at once, so their bytes differ from one build to the next.
    Raises IndexBuildError for vectors of another width or that are not finite.
    """
    index = faiss.IndexIDMap(copy_index(codebook))
    for number, rows_N, vectors_ND in segments:
        for start in range(0, len(rows_N), ADD_ROWS):
            block_ND = as_float32(vectors_ND[start : start + ADD_ROWS], codebook.d, f"vectors of segment {number}")
            index.add_with_ids(block_ND, index_ids(number, rows_N[start : start + ADD_ROWS]))
    write_faiss(index, path)
    return int(index.ntotal)


def index_ids(segment_number: int, rows_N: npt.NDArray[np.integer[Any]]) -> npt.NDArray[np.int64]:
    """Return index ids (N,) int64 of rows (N,) of a segment. Raises IntegrityError for a number out of range."""
    if not 0 <= segment_number <= MAX_SEGMENT_NUMBER:
        raise IntegrityError(f"segment number {segment_number} is outside 0 to {MAX_SEGMENT_NUMBER}")
    return np.int64(segment_number) << ROW_BITS | rows_N.astype(np.int64)


class _LivePart:
    """A part without its dead rows, read range by range."""

    def __init__(self, codebook: faiss.Index, ref: PartRef) -> None:
        name = f"the part of segment {ref.segment_number}"
        self.segment_number = ref.segment_number
        self._file = PartFile(ref.file, name, ref.codebook_sha256)
        self.code_bytes = self._file.code_bytes
        found = (self._file.ntotal, len(self._file.list_starts_L) - 1, self._file.code_bytes)
        inner = core(codebook)
        expected = (ref.rows, inner.nlist if isinstance(inner, faiss.IndexIVF) else 1, inner.code_size)
        if found != expected:
            raise IntegrityError(
                f"{name} has {found[0]} rows, {found[1]} lists and {found[2]} bytes a code; segment and codebook have "
                f"{expected[0]}, {expected[1]} and {expected[2]}, so build it again"
            )
        self._dead = ref.dead_rows.astype(np.int64)
        if len(self._dead) and not (self._dead[-1] < ref.rows and (np.diff(self._dead) > 0).all()):
            raise IntegrityError(
                f"the {len(self._dead)} dead rows of segment {ref.segment_number} are not ascending numbers below "
                f"{ref.rows}; store its deletion set again"
            )
        self.live_rows = ref.rows - len(self._dead)

    def live_sizes(self) -> npt.NDArray[np.int64]:
        """Return the live vectors in each list (L,)."""
        starts = self._file.list_starts_L.astype(np.int64)
        sizes_L = starts[1:] - starts[:-1]
        return sizes_L if not len(self._dead) else self._kept(sizes_L, self._file.rows(0, self._file.ntotal))[0]

    def read(self, first: int, last: int) -> "_Read":
        """Read lists `first` to `last`."""
        starts = self._file.list_starts_L[first : last + 1].astype(np.int64)
        rows_n, codes_nB = self._file.rows(starts[0], starts[-1]), self._file.codes(starts[0], starts[-1])
        sizes = starts[1:] - starts[:-1]
        if len(self._dead):
            sizes, keep_n = self._kept(sizes, rows_n)
            rows_n, codes_nB = rows_n[keep_n], codes_nB[keep_n]
        return _Read(sizes, index_ids(self.segment_number, rows_n), codes_nB)

    def _kept(
        self, sizes: npt.NDArray[np.int64], rows_n: npt.NDArray[np.uint32]
    ) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.bool_]]:
        """Return live sizes of lists of given sizes, and which of their rows live (n,)."""
        dead = np.zeros(self._file.ntotal, np.bool_)
        dead[self._dead] = True
        keep_n = ~dead[rows_n]
        lists_n = np.repeat(np.arange(len(sizes)), sizes)
        return np.bincount(lists_n[keep_n], minlength=len(sizes)), keep_n


class _Read(NamedTuple):
    """A range of lists of one part, list by list."""

    sizes: npt.NDArray[np.int64]
    """Live vectors in each list."""
    ids_n: npt.NDArray[np.int64]
    codes_nB: npt.NDArray[np.uint8]


@dataclass(frozen=True)
class _Parts:
    """Parts in merging order, and the threads that read them."""

    parts: Sequence[_LivePart]
    lists: int
    pool: Executor

    def live_sizes(self) -> npt.NDArray[np.int64]:
        """Return the live vectors in each list (L,), over all parts."""
        return sum(self.pool.map(_LivePart.live_sizes, self.parts), np.zeros(self.lists, np.int64))

    def gather(
        self, first: int, last: int, sizes: npt.NDArray[np.int64]
    ) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.uint8]]:
        """Return ids and codes of a range of lists, list by list and, within a list, part by part."""
        ids_N = np.empty(sizes.sum(), np.int64)
        codes_NB = np.empty((len(ids_N), self.parts[0].code_bytes if self.parts else 0), np.uint8)
        free = np.cumsum(sizes) - sizes

        def place(part: _Read, free: npt.NDArray[np.int64]) -> None:
            starts = np.cumsum(part.sizes) - part.sizes
            places_n = np.repeat(free - starts, part.sizes) + np.arange(len(part.ids_n))
            ids_N[places_n], codes_NB[places_n] = part.ids_n, part.codes_nB

        for start in range(0, len(self.parts), PARALLEL_READS):
            next_parts = self.parts[start : start + PARALLEL_READS]
            placing = []
            for part in self.pool.map(lambda part: part.read(first, last), next_parts):
                placing.append(self.pool.submit(place, part, free))
                free = free + part.sizes  # another array: the one before is in use
            for placed in placing:
                placed.result()
        return ids_N, codes_NB


def _merge_lists(writer: ListWriter, parts: _Parts, file: BinaryIO, buffer_bytes: int) -> int:
    """Write lists that hold the live vectors of all parts; return their number."""
    sizes_L = parts.live_sizes()
    total, live = int(sizes_L.sum()), sum(part.live_rows for part in parts.parts)
    if total != live:
        raise IntegrityError(f"the lists of the parts hold {total} live vectors and their segments {live} live rows")
    file.write(writer.head(sizes_L))
    encoded: deque[Future[Codes]] = deque()
    encoders = max(MIN_ENCODERS, min(MAX_ENCODERS, len(os.sched_getaffinity(0)) // 2))
    with ThreadPoolExecutor(encoders) as pool:  # they encode while the next range is gathered and the last is written
        for first, last in _ranges(writer.bytes_of(sizes_L), buffer_bytes):
            ids_N, codes_NB = parts.gather(first, last, sizes_L[first:last])
            encoded.append(pool.submit(writer.encode, sizes_L[first:last], codes_NB, ids_N))
            if len(encoded) > encoders:
                file.write(encoded.popleft().result().data)
        for waiting in encoded:
            file.write(waiting.result().data)
    return total


def _ranges(bytes_L: npt.NDArray[np.int64], buffer_bytes: int) -> Iterator[tuple[int, int]]:
    """Yield runs of lists that take at most `buffer_bytes`, or consist of one list."""
    ends_L = np.cumsum(bytes_L)
    first = 0
    while first < len(bytes_L):
        room = buffer_bytes + (ends_L[first - 1] if first else 0)
        last = max(first + 1, int(np.searchsorted(ends_L, room, side="right")))
        yield first, last
        first = last


def _merge_codes(codebook: faiss.Index, parts: Sequence[_LivePart], path: Path) -> int:
    """Write one table that holds the live vectors of all parts; return their number."""
    index = faiss.IndexIDMap(copy_index(codebook))
    table = core(faiss.downcast_index(index.index))
    ids = [np.empty(0, np.int64)]
    for part in parts:
        read = part.read(0, 1)
        table.add_sa_codes(read.codes_nB)
        ids.append(read.ids_n)
    ids_N = np.concatenate(ids)
    faiss.copy_array_to_vector(ids_N, index.id_map)
    set_ntotal(index, len(ids_N))
    write_faiss(index, path)
    return len(ids_N)


@contextlib.contextmanager
def _whole_or_gone(path: Path) -> Iterator[BinaryIO]:
    """Open a file for writing, and delete it after an error."""
    try:
        with path.open("wb") as file:
            yield file
    except OSError as error:
        path.unlink(missing_ok=True)
        raise IndexBuildError(
            f"index file {path} cannot be written: {error.strerror or error}; free disk space or use another folder"
        ) from error
    except BaseException:
        path.unlink(missing_ok=True)
        raise
