"""Reading vectors of segments where they lie: from the mapped Parquet file, or by range from an object store.

Whatever form they are stored in, they are returned as float16.

Shapes: N rows, D dimensions, B bytes of a vector, S segments, G row groups of all segments.
"""

import ctypes
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from dpr.errors import IntegrityError
from dpr.formats.objects import damage_explained, fetch_object, open_parts
from dpr.formats.records import ObjectRef
from dpr.formats.stored_vectors import Vectors, from_rows
from dpr.formats.vector_layout import ROW_GROUP_ROWS, VectorLayout, vector_layout
from dpr.recipe import StoreAs
from dpr.store import PARALLEL_READS, Store
from dpr.store.mapped_files import KEPT_BYTES, map_file, touch
from dpr.store.small_reads import SmallReads

MAPPED_BYTES = KEPT_BYTES
"""Vectors that take no more stay mapped."""
FEW_ROWS = 2048
"""As many vectors at most are read one by one, each in half a microsecond."""
MAX_GAP_BYTES = 64 << 10
"""Rows closer than this are read from an object store in one request, if they begin in the same window of the file."""
WINDOW_BYTES = 8 << 20
"""`PARALLEL_READS` requests are in memory at once, each with hardly more bytes than a window. The vectors of a row
group, which lie together, take 12.6 MB with 768 dimensions, and 67 MB with 4,096."""


class SegmentVectors:
    """The vectors of one segment; nothing is unpacked."""

    def __init__(
        self, layout: VectorLayout, mapped: npt.NDArray[np.uint8] | None, store: Store, name: str, path: Path | None
    ) -> None:
        self._layout, self._mapped, self._store, self._name = layout, mapped, store, name
        self.row_bytes = layout.row_bytes
        self.path = path
        """The file of a mapped segment."""

    @classmethod
    def open(cls, store: Store, ref: ObjectRef, *, verify: bool = False) -> "SegmentVectors":
        """Open the vectors of a segment.

        With `verify`, the file of a remote store is fetched into the cache, and its checksum is verified; otherwise
        vectors are read where they lie. Raises IntegrityError for a segment that is not as recorded.
        """
        file = fetch_object(store, ref) if verify else open_parts(store, ref)
        with damage_explained(file):
            metadata = pq.read_metadata(file)
        mapped = map_file(file) if isinstance(file, Path) else None

        def read(start: int, length: int) -> bytes:
            if mapped is not None:
                return mapped[start : start + length].tobytes()
            return store.get_range(ref.name, start, length)

        layout = vector_layout(metadata, ref.name, read)
        path = file if isinstance(file, Path) else None
        return cls(layout, mapped if layout.rows else None, store, ref.name, path)

    @property
    def dim(self) -> int:
        return self._layout.dim

    @property
    def store_as(self) -> StoreAs:
        return self._layout.store_as

    @property
    def is_remote(self) -> bool:
        """Return whether vectors are fetched when they are needed."""
        return self._mapped is None and len(self) > 0

    def __len__(self) -> int:
        return self._layout.rows

    def open_mapped(self) -> BinaryIO | None:
        """Return the whole file of a mapped segment, to be read from memory; None if it is not mapped."""
        return None if self._mapped is None else pa.BufferReader(pa.py_buffer(self._mapped))

    def rows(self, rows_N: npt.NDArray[np.int64]) -> Vectors:
        """Return the vectors (N, D) float16 of rows (N,), in their order."""
        if self._mapped is not None:
            return from_rows(_gather(self._mapped, self._layout.offsets(rows_N), self.row_bytes), self.store_as)
        return from_rows(read_all(list(self.reads(rows_N)), len(rows_N), self.row_bytes), self.store_as)

    @property
    def address(self) -> int:
        """Return where in this process's memory the file of a mapped segment begins."""
        return 0 if self._mapped is None else self._mapped.ctypes.data

    @property
    def starts_G(self) -> npt.NDArray[np.int64]:
        """Return where in the file each row group begins."""
        return self._layout.starts_G

    def all(self) -> Vectors:
        """Return all vectors (N, D) float16."""
        return np.concatenate([np.empty((0, self.dim), np.float16), *(block for _, block in self.blocks())])

    def blocks(self) -> Iterator[tuple[int, Vectors]]:
        """Yield the first row and the vectors (n, D) of each row group, in order."""
        for group, start in enumerate(self._layout.starts_G.tolist()):
            first = group * ROW_GROUP_ROWS
            rows = min(ROW_GROUP_ROWS, len(self) - first)
            yield first, self._block(start, rows)

    def _block(self, start: int, rows: int) -> Vectors:
        if self._mapped is not None:
            data = self._mapped[start : start + rows * self.row_bytes]
            touch(data.nbytes)
        else:
            data = self._fetched(start, rows * self.row_bytes)
        return from_rows(data.reshape(rows, self.row_bytes), self.store_as)

    def reads(self, rows_N: npt.NDArray[np.int64]) -> Iterator["RangeRead"]:
        """Yield the reads that give the vectors of rows (N,); those that lie close together are read in one request."""
        offsets_N = self._layout.offsets(rows_N)
        order_N = np.argsort(offsets_N, kind="stable")
        sorted_N = offsets_N[order_N]
        is_far = (np.diff(sorted_N) > self.row_bytes + MAX_GAP_BYTES) | (np.diff(sorted_N // WINDOW_BYTES) > 0)
        cuts = np.flatnonzero(is_far) + 1
        for run in np.split(np.arange(len(sorted_N)), cuts) if len(sorted_N) else []:
            yield RangeRead(order_N[run], partial(self._read_run, sorted_N[run]))

    def _read_run(self, offsets_n: npt.NDArray[np.int64]) -> npt.NDArray[np.uint8]:
        """Return the bytes of the vectors that begin at ascending offsets (n,), by one request."""
        start, stop = int(offsets_n[0]), int(offsets_n[-1]) + self.row_bytes
        data = self._fetched(start, stop - start)
        return np.stack([data[at : at + self.row_bytes] for at in (offsets_n - start).tolist()])

    def _fetched(self, start: int, length: int) -> npt.NDArray[np.uint8]:
        """Return bytes of the stored object. Raises IntegrityError if it ends before them."""
        data = self._store.get_range(self._name, start, length)
        if len(data) != length:
            raise IntegrityError(
                f"store {self._store.url}, object {self._name} ends before byte {start + length:,}, where its vectors "
                "lie; roll back to a sound snapshot or run the recipe again"
            )
        return np.frombuffer(data, np.uint8)


class RangeRead(NamedTuple):
    """One request to an object store."""

    places_n: npt.NDArray[np.int64]
    """Which of the wanted rows it gives."""
    read: Callable[[], npt.NDArray[np.uint8]]
    """Reads the bytes of their vectors (n, bytes)."""


def read_all(reads: Sequence[RangeRead], rows: int, row_bytes: int) -> npt.NDArray[np.uint8]:
    """Return the bytes (rows, B) of vectors, read by several requests at once."""
    found_N = np.empty((rows, row_bytes), np.uint8)
    with ThreadPoolExecutor(PARALLEL_READS) as pool:
        for read, data in zip(reads, pool.map(lambda each: each.read(), reads), strict=True):
            found_N[read.places_n] = data
    return found_N


class LocalVectors:
    """The vectors of several local segments, which are gathered in one call, however many segments they lie in.

    A call for each segment would take longer than all work on the vectors: the candidates of one question lie in nearly
    all segments. If they take much memory, a few are read from the files, so that no pages have to be mapped for them.
    Many are copied from the mapped files.
    """

    def __init__(self, segments: Mapping[int, SegmentVectors]) -> None:
        """Take segments by number, of one width and form, none of them remote."""
        numbers = sorted(segments)
        self._segments = [segments[number] for number in numbers]  # while they live, their files stay mapped
        self._numbers_S = np.array(numbers, np.int64)
        self._rows_S = np.array([len(segment) for segment in self._segments], np.int64)
        self._row_bytes, self._store_as = self._segments[0].row_bytes, self._segments[0].store_as
        groups_S = [len(segment.starts_G) for segment in self._segments]
        self._first_group_S = np.cumsum([0, *groups_S])[:-1]
        self._starts_G = np.concatenate([segment.starts_G for segment in self._segments])
        addresses_G = self._starts_G + np.repeat([segment.address for segment in self._segments], groups_S)
        first = int(addresses_G.min())
        span_bytes = int(addresses_G.max()) - first + ROW_GROUP_ROWS * self._row_bytes
        self._offsets_G = addresses_G - first
        # it spans what lies between the files, too; only vectors are ever read
        self._memory: npt.NDArray[np.uint8] = np.ctypeslib.as_array((ctypes.c_uint8 * span_bytes).from_address(first))
        paths = [segment.path for segment in self._segments if segment.path is not None]
        is_large = int(self._rows_S.sum()) * self._row_bytes > MAPPED_BYTES
        self._files = SmallReads.open(paths) if is_large and len(paths) == len(self._segments) else None

    def rows(self, numbers_N: npt.NDArray[np.int64], rows_N: npt.NDArray[np.int64]) -> Vectors:
        """Return the vectors (N, D) float16 of rows (N,) of the segments of these numbers (N,), in their order.

        Raises IntegrityError for a row that does not exist.
        """
        segments_N = np.minimum(np.searchsorted(self._numbers_S, numbers_N), len(self._numbers_S) - 1)
        wrong_N = (self._numbers_S[segments_N] != numbers_N) | (rows_N >= self._rows_S[segments_N])
        if wrong_N.any():
            place = int(np.flatnonzero(wrong_N)[0])
            raise IntegrityError(
                f"the index names row {rows_N[place]} of segment {numbers_N[place]}, which the snapshot does not have; "
                "roll back to a sound snapshot or run the recipe again"
            )
        groups_N = self._first_group_S[segments_N] + rows_N // ROW_GROUP_ROWS
        within_N = rows_N % ROW_GROUP_ROWS * self._row_bytes
        if self._files is not None and len(rows_N) <= FEW_ROWS:
            found_NB = self._files.pieces(segments_N, self._starts_G[groups_N] + within_N, self._row_bytes)
        else:
            found_NB = _gather(self._memory, self._offsets_G[groups_N] + within_N, self._row_bytes)
        return from_rows(found_NB, self._store_as)


def _gather(memory: npt.NDArray[np.uint8], offsets_N: npt.NDArray[np.int64], row_bytes: int) -> npt.NDArray[np.uint8]:
    """Return the bytes (N, B) of vectors that begin at some bytes (N,).

    In the view a vector begins at every byte, so that one call copies all of them, each as a whole.
    """
    touch(0, len(offsets_N))
    view = np.ndarray((len(memory) - row_bytes + 1,), np.dtype((np.void, row_bytes)), memory, strides=(1,))
    return view[offsets_N].view(np.uint8).reshape(len(offsets_N), row_bytes)
