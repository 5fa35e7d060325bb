"""Merging parts into an index file, which is written range by range and never held in memory.

Lists are merged in order. For each range of lists that fits the buffer, a thread reads the codes of that range from
all parts, leaves dead rows out, and encodes what is left; the ranges are written one after the other. Within a list,
vectors keep the order of the parts and of their rows. So the file equals that of an index to which one process adds
the live vectors in that order.

Ids are `segment_number << 32 | row`.

Shapes: P parts, L lists, l lists of a range, N vectors, n vectors of a range of lists, D dimensions, B bytes of a code.
"""

import contextlib
import os
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

import faiss
import numpy as np
import numpy.typing as npt

from dpr.errors import IndexBuildError, IntegrityError
from dpr.index.faiss_file import write_faiss
from dpr.index.hardware import Codes, as_float32
from dpr.index.invlists import ListWriter, list_writer
from dpr.index.kinds import Storage, copy_index, core, set_ntotal, storage
from dpr.index.part import PartFile
from dpr.store import PARALLEL_READS

ROW_BITS = 32
ROW_MASK = (1 << ROW_BITS) - 1
MAX_SEGMENT_NUMBER = 2**31 - 1
BUFFER_BYTES = 64 * 2**20
MIN_ENCODERS, MAX_ENCODERS = 2, 8
"""Ranges of lists that are gathered and encoded at once; the CPUs decide how many."""
ADD_ROWS = 32_768

Rows = npt.NDArray[np.int64]


@dataclass(frozen=True)
class PartRef:
    """A part to be merged."""

    segment_number: int
    file: Path
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
        writer = list_writer(codebook)
        sizes_L = sum(pool.map(_LivePart.live_sizes, live), np.zeros(writer.lists, np.int64))
    with _whole_or_gone(path) as file:
        return _merge_lists(writer, live, sizes_L, file, buffer_bytes)


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
        self.segment_number, self.dead_rows = ref.segment_number, ref.dead_rows
        self.file = PartFile(ref.file, name, ref.codebook_sha256)
        found = (self.file.ntotal, len(self.file.list_starts_L) - 1, self.file.code_bytes)
        inner = core(codebook)
        expected = (ref.rows, inner.nlist if isinstance(inner, faiss.IndexIVF) else 1, inner.code_size)
        if found != expected:
            raise IntegrityError(
                f"{name} has {found[0]} rows, {found[1]} lists and {found[2]} bytes a code; segment and codebook have "
                f"{expected[0]}, {expected[1]} and {expected[2]}, so build it again"
            )
        dead = ref.dead_rows.astype(np.int64)
        if len(dead) and not (dead[-1] < ref.rows and (np.diff(dead) > 0).all()):
            raise IntegrityError(
                f"the {len(dead)} dead rows of segment {ref.segment_number} are not ascending numbers below "
                f"{ref.rows}; store its deletion set again"
            )
        self.live_rows = ref.rows - len(dead)

    def live_sizes(self) -> npt.NDArray[np.int64]:
        """Return the live vectors in each list (L,)."""
        starts_L = self.file.list_starts_L.astype(np.int64)
        sizes_L = starts_L[1:] - starts_L[:-1]
        if not len(self.dead_rows):
            return sizes_L
        lists_N = np.repeat(np.arange(len(sizes_L)), sizes_L)
        is_dead_N = np.isin(self.file.rows(), self.dead_rows)
        return sizes_L - np.bincount(lists_N[is_dead_N], minlength=len(sizes_L))


def _gather(parts: Sequence[_LivePart], first: int, last: int) -> tuple[npt.NDArray[np.int64], Codes]:
    """Return ids (n,) and codes (n, B) of lists `first` to `last`, list by list and, within a list, part by part.

    Each part is read with few calls, and all are put in order at once: with hundreds of parts, what Python does for
    each of them is what takes the time.
    """
    if not parts:
        return np.empty(0, np.int64), np.empty((0, 0), np.uint8)
    starts_Pl = np.stack([part.file.list_starts_L[first : last + 1] for part in parts]).astype(np.int64)
    sizes_Pl = np.diff(starts_Pl)
    rows_n, codes_nB = _read(parts, starts_Pl[:, 0], sizes_Pl.sum(axis=1))
    ids_n = np.empty(len(rows_n), np.int64)
    live_n = np.ones(len(rows_n), np.bool_)
    ends_P = np.cumsum(sizes_Pl.sum(axis=1)).tolist()
    for part, start, end in zip(parts, [0, *ends_P], ends_P, strict=False):
        ids_n[start:end] = index_ids(part.segment_number, rows_n[start:end])
        if len(part.dead_rows):
            live_n[start:end] = ~np.isin(rows_n[start:end], part.dead_rows)
    order_n = _list_order(sizes_Pl)
    order_n = order_n[live_n[order_n]]
    return np.take(ids_n, order_n), np.take(codes_nB, order_n, axis=0)


def _read(
    parts: Sequence[_LivePart], starts_P: npt.NDArray[np.int64], sizes_P: npt.NDArray[np.int64]
) -> tuple[npt.NDArray[np.uint32], Codes]:
    """Read from position `start` of the list order of each part on; return rows (n,) and codes (n, B), part by part."""
    rows_n = np.empty(sizes_P.sum(), np.uint32)
    codes_nB = np.empty((len(rows_n), parts[0].file.code_bytes), np.uint8)
    end = 0
    for part, start, size in zip(parts, starts_P.tolist(), sizes_P.tolist(), strict=True):
        part.file.read_into(start, rows_n[end : end + size], codes_nB[end : end + size])
        end += size
    return rows_n, codes_nB


def _list_order(sizes_Pl: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Return where each vector stands that is wanted list by list, if they lie part by part; sizes are of both."""
    starts_Pl = np.cumsum(sizes_Pl).reshape(sizes_Pl.shape) - sizes_Pl
    sizes_lP = sizes_Pl.T.ravel()
    shifts_lP = starts_Pl.T.ravel() - (np.cumsum(sizes_lP) - sizes_lP)
    return np.repeat(shifts_lP, sizes_lP) + np.arange(sizes_lP.sum())


def _merge_lists(
    writer: ListWriter, parts: Sequence[_LivePart], sizes_L: npt.NDArray[np.int64], file: BinaryIO, buffer_bytes: int
) -> int:
    """Write lists that hold the live vectors of all parts; return their number. `sizes_L` is how many each has."""
    total, live = int(sizes_L.sum()), sum(part.live_rows for part in parts)
    if total != live:
        raise IntegrityError(f"the lists of the parts hold {total} live vectors and their segments {live} live rows")
    file.write(writer.head(sizes_L))

    def encoded(first: int, last: int) -> Codes:
        ids_n, codes_nB = _gather(parts, first, last)
        return writer.encode(sizes_L[first:last], codes_nB, ids_n)

    waiting: deque[Future[Codes]] = deque()
    encoders = max(MIN_ENCODERS, min(MAX_ENCODERS, len(os.sched_getaffinity(0)) // 2))
    with ThreadPoolExecutor(encoders) as pool:
        for first, last in _ranges(writer.bytes_of(sizes_L), buffer_bytes):
            waiting.append(pool.submit(encoded, first, last))
            if len(waiting) > encoders:
                file.write(waiting.popleft().result().data)
        for last_ones in waiting:
            file.write(last_ones.result().data)
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
    """Write one table that holds the live vectors of all parts; return their number.

    Its memory is taken once, in full. Added part by part, the table would move to ever larger places, with both in
    memory, and take nearly twice as much.
    """
    index = faiss.IndexIDMap(copy_index(codebook))
    table = core(faiss.downcast_index(index.index))
    rows = sum(part.live_rows for part in parts)
    size_bytes = rows * int(table.code_size)
    table.codes.resize(size_bytes)
    index.id_map.resize(rows)
    if rows:  # else there is nothing to write to
        codes_NB = faiss.rev_swig_ptr(table.codes.data(), size_bytes).reshape(rows, -1)
        ids_N = faiss.rev_swig_ptr(index.id_map.data(), rows)
        first = 0
        for part in parts:
            ids_n, codes_nB = _gather([part], 0, 1)
            last = first + len(ids_n)
            codes_NB[first:last], ids_N[first:last] = codes_nB, ids_n
            first = last
    set_ntotal(index, rows)
    write_faiss(index, path)
    return rows


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
