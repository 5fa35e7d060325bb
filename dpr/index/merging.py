"""Merging parts into an index file, which is written range by range and never held in memory.

Lists are merged in order. For each range of lists that fits the buffer, a thread reads the codes of that range from
all parts, leaves dead rows out, and encodes what is left; the ranges are written one after the other. Within a list,
vectors keep the order of the parts and of their rows. So the file equals that of an index to which one process adds
the live vectors in that order.

Shapes: L lists, N vectors, n vectors of a range of lists, D dimensions, B bytes of a code.
"""

import contextlib
import os
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import BinaryIO

import faiss
import numpy as np
import numpy.typing as npt

from dpr.errors import IndexBuildError, IntegrityError
from dpr.index.faiss_file import write_faiss
from dpr.index.hardware import Codes, as_float32
from dpr.index.invlists import ListWriter, list_writer
from dpr.index.kinds import Storage, copy_index, core, set_ntotal, storage
from dpr.index.live_parts import LivePart, PartRef, gather
from dpr.index.row_ids import index_ids
from dpr.store import PARALLEL_READS
from dpr.store.reasons import reason_of

BUFFER_BYTES = 64 * 2**20
MIN_ENCODERS, MAX_ENCODERS = 2, 8
"""Ranges of lists that are gathered and encoded at once; the CPUs decide how many."""
ADD_ROWS = 32_768

Rows = npt.NDArray[np.int64]


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
        live = list(pool.map(partial(LivePart, codebook), parts))
        numbers = [part.segment_number for part in live]
        if len(set(numbers)) != len(numbers):
            raise IntegrityError(f"parts of segments {numbers} are to be merged; each segment may come once")
        if storage(codebook) is Storage.CODES:
            return _merge_codes(codebook, live, path)
        writer = list_writer(codebook)
        sizes_L = sum(pool.map(LivePart.live_sizes, live), np.zeros(writer.lists, np.int64))
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


def _merge_lists(
    writer: ListWriter, parts: Sequence[LivePart], sizes_L: npt.NDArray[np.int64], file: BinaryIO, buffer_bytes: int
) -> int:
    """Write lists that hold the live vectors of all parts; return their number. `sizes_L` is how many each has."""
    total, live = int(sizes_L.sum()), sum(part.live_rows for part in parts)
    if total != live:
        raise IntegrityError(f"the lists of the parts hold {total} live vectors and their segments {live} live rows")
    file.write(writer.head(sizes_L))

    def encoded(first: int, last: int) -> Codes:
        ids_n, codes_nB = gather(parts, first, last)
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


def _merge_codes(codebook: faiss.Index, parts: Sequence[LivePart], path: Path) -> int:
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
            ids_n, codes_nB = gather([part], 0, 1)
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
            f"index file {path} cannot be written: {reason_of(error)}; free disk space or use another folder"
        ) from error
    except BaseException:
        path.unlink(missing_ok=True)
        raise
