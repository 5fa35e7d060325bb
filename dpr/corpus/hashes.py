"""Arrays of 128-bit hashes, compared as a whole: which are known, which are repeated, and where one stands in another.

An array holds N hashes as Arrow's `fixed_size_binary[16]` (`dpr.formats.segment.HASH`), without nulls.
"""

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from dpr.fingerprint import KEY_BYTES
from dpr.formats.segment import HASH


class KnownKeys:
    """A set of keys, as two sorted arrays of their halves: 16 bytes a key, shared by workers without copying."""

    def __init__(self, keys: pa.FixedSizeBinaryArray) -> None:
        halves_N2 = _halves(keys)
        order_N = np.lexsort((halves_N2[:, 1], halves_N2[:, 0]))
        self.high = np.ascontiguousarray(halves_N2[order_N, 0])
        self.low = np.ascontiguousarray(halves_N2[order_N, 1])

    def __len__(self) -> int:
        return len(self.high)

    def contains(self, keys: pa.FixedSizeBinaryArray) -> npt.NDArray[np.bool_]:
        """Return which of the N `keys` are in the set."""
        halves_N2 = _halves(keys)
        first_N = np.searchsorted(self.high, halves_N2[:, 0], "left")
        stop_N = np.searchsorted(self.high, halves_N2[:, 0], "right")
        found_N = np.zeros(len(halves_N2), np.bool_)
        is_single_N = stop_N - first_N == 1
        found_N[is_single_N] = self.low[first_N[is_single_N]] == halves_N2[is_single_N, 1]
        for row in np.flatnonzero(stop_N - first_N > 1):  # a key twice, or two keys that share 64 bits: rare
            found_N[row] = halves_N2[row, 1] in self.low[first_N[row] : stop_N[row]]
        return found_N


def first_of_each(hashes: pa.FixedSizeBinaryArray) -> npt.NDArray[np.bool_]:
    """Return which of the N rows are the first with their hash.

    Only rows that share the first half of their hash with another are compared whole. Sorting the halves finds them,
    and they are few.
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
    """Return which of the N `hashes` are in `among`."""
    return places(hashes, among) >= 0


def places(hashes: pa.FixedSizeBinaryArray, among: pa.FixedSizeBinaryArray) -> npt.NDArray[np.int64]:
    """Return the row of `among` at which each of the N `hashes` first stands, or -1 if it is not there."""
    if not (len(hashes) and len(among)):  # Arrow would make a hash table of the other array
        return np.full(len(hashes), -1, np.int64)
    found_N: npt.NDArray[np.int64] = pc.index_in(hashes, value_set=among).fill_null(-1).to_numpy().astype(np.int64)
    return found_N


def one_array(column: pa.ChunkedArray) -> pa.FixedSizeBinaryArray:
    """Join the chunks of a column into one array of hashes."""
    return pa.concat_arrays([pa.array([], HASH), *(chunk.cast(HASH) for chunk in column.chunks)])


def bytes_of(array: pa.FixedSizeBinaryArray) -> memoryview:
    """Return the bytes of all hashes of an array, one after another, without copying."""
    if not len(array):  # it may have no buffer
        return memoryview(b"")
    return memoryview(array.buffers()[1])[array.offset * KEY_BYTES : (array.offset + len(array)) * KEY_BYTES]


def _halves(hashes: pa.FixedSizeBinaryArray) -> npt.NDArray[np.uint64]:
    """Return the two 64-bit halves (N, 2) of each hash."""
    return np.frombuffer(bytes_of(hashes), np.uint64).reshape(-1, 2)
