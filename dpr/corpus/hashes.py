"""Operations on whole arrays of 128-bit hashes: membership, repetition, and the position of each hash in another array.

An array holds N hashes as Arrow's `fixed_size_binary[16]` (`dpr.formats.segment.HASH`), without nulls. Large arrays are
worked on by all CPUs: hashes are uniform, so each thread takes a range of values. Others would take longer.
"""

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from dpr.fingerprint import KEY_BYTES
from dpr.formats import MISSING

PIECE_ROWS = 1 << 19
"""Hashes that one thread sorts or looks up at a time."""
MANY_TIMES = 8
"""`places` sorts `hashes` instead of `among` if `among` is more than this many times as long."""
Rows = npt.NDArray[np.int64]
Halves = npt.NDArray[np.uint64]
T = TypeVar("T")
R = TypeVar("R")


class SortedHashes:
    """N hashes sorted by their first 64 bits, for binary search; of equal hashes, the first row comes first."""

    def __init__(self, hashes: pa.FixedSizeBinaryArray) -> None:
        halves_N2 = _halves(hashes)
        self.rows_N = np.empty(len(halves_N2), np.int64)
        self.high_N, self.low_N = np.empty_like(self.rows_N, np.uint64), np.empty_like(self.rows_N, np.uint64)
        ranges = _Ranges(halves_N2[:, 0])

        def sort(number: int) -> None:
            rows_M = ranges.rows(number)
            rows_M = rows_M[np.argsort(halves_N2[rows_M, 0])]  # not stable, and several times faster than a stable sort
            sorted_M2 = halves_N2[rows_M]
            equal = sorted_M2[1:, 0] == sorted_M2[:-1, 0]
            repeated = np.flatnonzero(np.append(False, equal) | np.append(equal, False))
            if len(repeated):
                rows_M[repeated] = rows_M[repeated][np.lexsort((rows_M[repeated], sorted_M2[repeated, 0]))]
                sorted_M2[repeated] = halves_N2[rows_M[repeated]]
            there = slice(ranges.starts[number], ranges.starts[number] + len(rows_M))
            self.rows_N[there], self.high_N[there], self.low_N[there] = rows_M, sorted_M2[:, 0], sorted_M2[:, 1]

        _in_threads(sort, range(len(ranges)))

    def places(self, hashes: pa.FixedSizeBinaryArray) -> Rows:
        """Return the place (M,) of each of M hashes in sorted order: the first if there are several, or MISSING."""
        return _places_in(self.high_N, self.low_N, hashes)

    def rows(self, hashes: pa.FixedSizeBinaryArray) -> Rows:
        """Return the row (M,) at which each of M hashes first occurs among the N, or MISSING."""

        def look_up(halves_M2: Halves) -> Rows:
            places_M = _sorted_places(self.high_N, self.low_N, halves_M2)
            return np.where(places_M == MISSING, MISSING, self.rows_N[places_M]) if len(self.rows_N) else places_M

        return _in_pieces(look_up, hashes)


class KnownKeys:
    """A set of keys, as two sorted arrays of their halves: 16 bytes a key, shared by workers without copying."""

    def __init__(self, keys: pa.FixedSizeBinaryArray) -> None:
        found = SortedHashes(keys)
        self.high_N, self.low_N = found.high_N, found.low_N

    def __len__(self) -> int:
        return len(self.high_N)

    def contains(self, keys: pa.FixedSizeBinaryArray) -> npt.NDArray[np.bool_]:
        """Return which of the M `keys` are in the set, as a mask (M,)."""
        return _places_in(self.high_N, self.low_N, keys) >= 0


class _Ranges:
    """The rows of N uniform values by ranges of the value, about PIECE_ROWS rows each."""

    def __init__(self, values_N: Halves) -> None:
        pieces = -(-len(values_N) // PIECE_ROWS)
        bits = max(pieces - 1, 0).bit_length()

        def group(first: int) -> tuple[Rows, Rows]:
            """Return the rows of a piece in the order of their ranges, and the bounds of the ranges among them."""
            numbers_M = values_N[first : first + PIECE_ROWS] >> np.uint64(63 - bits) >> np.uint64(1)
            order_M = np.argsort(numbers_M.astype(np.uint16), kind="stable")  # a radix sort, for 16 bits
            counts = np.bincount(numbers_M.astype(np.int64), minlength=1 << bits)
            return first + order_M, np.concatenate([[0], np.cumsum(counts)])

        self._pieces = _in_threads(group, range(0, len(values_N), PIECE_ROWS))
        counts = sum((np.diff(bounds) for _, bounds in self._pieces), np.zeros(1 << bits, np.int64))
        self.starts: list[int] = (np.cumsum(counts) - counts).tolist()
        """How many rows the ranges before each one have."""

    def __len__(self) -> int:
        return len(self.starts)

    def rows(self, number: int) -> Rows:
        """Return the rows of a range, ascending."""
        some = [rows_M[bounds[number] : bounds[number + 1]] for rows_M, bounds in self._pieces]
        return np.concatenate([np.empty(0, np.int64), *some])


def _places_in(high_N: Halves, low_N: Halves, hashes: pa.FixedSizeBinaryArray) -> Rows:
    """Return the same for hashes (M,) as `_sorted_places`, on all CPUs."""
    return _in_pieces(lambda halves_M2: _sorted_places(high_N, low_N, halves_M2), hashes)


def _sorted_places(high_N: Halves, low_N: Halves, halves_M2: Halves) -> Rows:
    """Return the place (M,) at which each of M hashes first occurs among N sorted hashes, or MISSING.

    The N hashes are given as their two halves, sorted by the first one. The M hashes are sorted, too, so that the
    search goes through memory in order.
    """
    found_M = np.full(len(halves_M2), MISSING, np.int64)
    if not len(high_N):
        return found_M
    order_M = np.argsort(halves_M2[:, 0])
    wanted_M2 = halves_M2[order_M]
    places_M = np.minimum(np.searchsorted(high_N, wanted_M2[:, 0]), len(high_N) - 1)
    same_high_M = high_N[places_M] == wanted_M2[:, 0]
    same_M = same_high_M & (low_N[places_M] == wanted_M2[:, 1])
    found_M[order_M[same_M]] = places_M[same_M]
    for row in np.flatnonzero(same_high_M & ~same_M):  # other hashes share the first 64 bits: rare
        stop = np.searchsorted(high_N, wanted_M2[row, 0], "right")
        equal = np.flatnonzero(low_N[places_M[row] : stop] == wanted_M2[row, 1])
        found_M[order_M[row]] = places_M[row] + equal[0] if len(equal) else MISSING
    return found_M


def first_of_each(hashes: pa.FixedSizeBinaryArray) -> npt.NDArray[np.bool_]:
    """Return which of the N rows are the first with their hash, as a mask (N,).

    Sorting the first halves finds the rows that share theirs with another row. Only these few are compared whole.
    """
    halves_N = _halves(hashes)[:, 0]
    ranges = _Ranges(halves_N)

    def sharing(number: int) -> Rows:
        rows_M = ranges.rows(number)
        halves_M = halves_N[rows_M]
        sorted_M = np.sort(halves_M)
        repeated = sorted_M[1:][sorted_M[1:] == sorted_M[:-1]]
        return rows_M[np.isin(halves_M, repeated)] if len(repeated) else rows_M[:0]

    shared = np.sort(np.concatenate([np.empty(0, np.int64), *_in_threads(sharing, range(len(ranges)))]))
    first_N = np.ones(len(hashes), np.bool_)
    # the dictionary code of a hash is the number of distinct hashes before its first appearance
    codes = pc.dictionary_encode(hashes.take(pa.array(shared))).indices.to_numpy(zero_copy_only=False)
    first_N[shared] = np.diff(np.maximum.accumulate(codes), prepend=-1) > 0
    return first_N


def is_in(hashes: pa.FixedSizeBinaryArray, among: pa.FixedSizeBinaryArray) -> npt.NDArray[np.bool_]:
    """Return which of the N `hashes` are in `among`, as a mask (N,)."""
    return places(hashes, among) >= 0


def places(hashes: pa.FixedSizeBinaryArray, among: pa.FixedSizeBinaryArray) -> Rows:
    """Return the row (N,) of `among` at which each of the N `hashes` first occurs, or MISSING."""
    if len(hashes) * MANY_TIMES < len(among):
        return _places_of_few(hashes, among)
    return SortedHashes(among).rows(hashes)


def _places_of_few(hashes: pa.FixedSizeBinaryArray, among: pa.FixedSizeBinaryArray) -> Rows:
    """Return the same as `places`, by sorting `hashes` and searching in them for each of the many of `among`."""
    few = SortedHashes(hashes)
    places_M = few.places(among)
    found_rows = np.flatnonzero(places_M != MISSING)[::-1]
    row_of_place = np.full(len(hashes), MISSING, np.int64)
    row_of_place[places_M[found_rows]] = found_rows  # the first row is written last
    return row_of_place[few.places(hashes)]


def bytes_of(array: pa.FixedSizeBinaryArray) -> memoryview:
    """Return the bytes of all hashes of an array, one after another, without copying."""
    if not len(array):  # it may have no buffer
        return memoryview(b"")
    return memoryview(array.buffers()[1])[array.offset * KEY_BYTES : (array.offset + len(array)) * KEY_BYTES]


def _halves(hashes: pa.FixedSizeBinaryArray) -> Halves:
    """Return the two 64-bit halves (N, 2) of each hash."""
    return np.frombuffer(bytes_of(hashes), np.uint64).reshape(-1, 2)


def _in_pieces(work: Callable[[Halves], Rows], hashes: pa.FixedSizeBinaryArray) -> Rows:
    """Return what some work makes of the halves (M, 2) of pieces of N hashes, one after another (N,)."""
    halves_N2 = _halves(hashes)
    starts = range(0, len(halves_N2), PIECE_ROWS)
    found = _in_threads(lambda first: work(halves_N2[first : first + PIECE_ROWS]), starts)
    return found[0] if len(found) == 1 else np.concatenate([np.empty(0, np.int64), *found])


def _in_threads(work: Callable[[T], R], items: Sequence[T]) -> list[R]:
    """Do some work for each item, on all CPUs; numpy releases Python's lock while it sorts, searches and gathers."""
    if len(items) <= 1:
        return [work(item) for item in items]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return list(pool.map(work, items))
