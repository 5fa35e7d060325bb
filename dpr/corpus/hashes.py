"""Operations on whole arrays of 128-bit hashes: membership, repetition, and the position of each hash in another array.

An array holds N hashes as Arrow's `fixed_size_binary[16]` (`dpr.formats.segment.HASH`), without nulls.
"""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from dpr.fingerprint import KEY_BYTES
from dpr.formats import MISSING

PIECE_ROWS = 1 << 19
"""Hashes that one thread looks up at a time."""
MANY_TIMES = 8
"""`places` sorts `hashes` instead of `among` if `among` is more than this many times as long."""


class SortedHashes:
    """N hashes sorted by their first 64 bits, for binary search."""

    def __init__(self, hashes: pa.FixedSizeBinaryArray) -> None:
        halves_N2 = _halves(hashes)
        self.rows_N, self.high_N = _sorted_rows(halves_N2[:, 0])
        self.low_N = halves_N2[self.rows_N, 1]

    def places(self, hashes: pa.FixedSizeBinaryArray) -> npt.NDArray[np.int64]:
        """Return the place (M,) of each of M hashes in sorted order: the first if there are several, or MISSING."""
        return sorted_places(self.high_N, self.low_N, hashes)


class KnownKeys:
    """A set of keys, as two sorted arrays of their halves: 16 bytes a key, shared by workers without copying."""

    def __init__(self, keys: pa.FixedSizeBinaryArray) -> None:
        found = SortedHashes(keys)
        self.high_N, self.low_N = found.high_N, found.low_N

    def __len__(self) -> int:
        return len(self.high_N)

    def contains(self, keys: pa.FixedSizeBinaryArray) -> npt.NDArray[np.bool_]:
        """Return which of the M `keys` are in the set, as a mask (M,)."""
        return sorted_places(self.high_N, self.low_N, keys) >= 0


def sorted_places(
    high_N: npt.NDArray[np.uint64], low_N: npt.NDArray[np.uint64], hashes: pa.FixedSizeBinaryArray
) -> npt.NDArray[np.int64]:
    """Return the place (M,) at which each of M hashes first occurs among N sorted hashes, or MISSING.

    The N hashes are given as their two halves, sorted by the first one. The M hashes are sorted, too, so that the
    search goes through memory in order.
    """
    halves_M2 = _halves(hashes)
    if not (len(high_N) and len(halves_M2)):
        return np.full(len(halves_M2), MISSING, np.int64)
    pieces = np.array_split(halves_M2, -(-len(halves_M2) // PIECE_ROWS))
    if len(pieces) == 1:
        return _sorted_places(high_N, low_N, halves_M2)
    with ThreadPoolExecutor() as pool:  # numpy releases the GIL while it sorts and searches
        return np.concatenate(list(pool.map(lambda piece_M2: _sorted_places(high_N, low_N, piece_M2), pieces)))


def _sorted_places(
    high_N: npt.NDArray[np.uint64], low_N: npt.NDArray[np.uint64], halves_M2: npt.NDArray[np.uint64]
) -> npt.NDArray[np.int64]:
    found_M = np.full(len(halves_M2), MISSING, np.int64)
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


def _sorted_rows(high_N: npt.NDArray[np.uint64]) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.uint64]]:
    """Return the rows (N,) that sort the halves, stably, and the sorted halves (N,)."""
    rows_N = _argsort(high_N)
    sorted_N = high_N[rows_N]
    if len(sorted_N) > 1:
        equal = sorted_N[1:] == sorted_N[:-1]
        repeated = np.flatnonzero(np.append(False, equal) | np.append(equal, False))
        rows_N[repeated] = rows_N[repeated][np.lexsort((rows_N[repeated], sorted_N[repeated]))]
    return rows_N, sorted_N


def _argsort(high_N: npt.NDArray[np.uint64]) -> npt.NDArray[np.int64]:
    """Sort on all CPUs: hashes are uniform, so each thread sorts a range of values. Equal values come in any order."""
    parts = -(-len(high_N) // PIECE_ROWS)
    if parts <= 1:
        return np.argsort(high_N)  # not stable, and several times faster than a stable sort
    bits = (parts - 1).bit_length()
    part_N = (high_N >> np.uint64(64 - bits)).astype(np.uint16)
    grouped_N = np.argsort(part_N, kind="stable")  # a radix sort, for 16 bits
    stops = np.cumsum(np.bincount(part_N, minlength=1 << bits))[:-1]

    def sort(rows_M: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        return rows_M[np.argsort(high_N[rows_M])]

    with ThreadPoolExecutor() as pool:
        return np.concatenate(list(pool.map(sort, np.split(grouped_N, stops))))


def first_of_each(hashes: pa.FixedSizeBinaryArray) -> npt.NDArray[np.bool_]:
    """Return which of the N rows are the first with their hash, as a mask (N,).

    Sorting the first halves finds the rows that share theirs with another row. Only these few are compared whole.
    """
    halves_N = _halves(hashes)[:, 0]
    sorted_N = np.sort(halves_N)
    shared = np.flatnonzero(np.isin(halves_N, sorted_N[1:][sorted_N[1:] == sorted_N[:-1]]))
    first_N = np.ones(len(hashes), np.bool_)
    # the dictionary code of a hash is the number of distinct hashes before its first appearance
    codes = pc.dictionary_encode(hashes.take(pa.array(shared))).indices.to_numpy(zero_copy_only=False)
    first_N[shared] = np.diff(np.maximum.accumulate(codes), prepend=-1) > 0
    return first_N


def is_in(hashes: pa.FixedSizeBinaryArray, among: pa.FixedSizeBinaryArray) -> npt.NDArray[np.bool_]:
    """Return which of the N `hashes` are in `among`, as a mask (N,)."""
    return places(hashes, among) >= 0


def places(hashes: pa.FixedSizeBinaryArray, among: pa.FixedSizeBinaryArray) -> npt.NDArray[np.int64]:
    """Return the row (N,) of `among` at which each of the N `hashes` first occurs, or MISSING."""
    if len(hashes) * MANY_TIMES < len(among):
        return _places_of_few(hashes, among)
    found = SortedHashes(among)
    places_N = found.places(hashes)
    return np.where(places_N == MISSING, MISSING, found.rows_N[places_N]) if len(among) else places_N


def _places_of_few(hashes: pa.FixedSizeBinaryArray, among: pa.FixedSizeBinaryArray) -> npt.NDArray[np.int64]:
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


def _halves(hashes: pa.FixedSizeBinaryArray) -> npt.NDArray[np.uint64]:
    """Return the two 64-bit halves (N, 2) of each hash."""
    return np.frombuffer(bytes_of(hashes), np.uint64).reshape(-1, 2)
