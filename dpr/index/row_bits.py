"""Some rows of a snapshot, such as those that a filter chooses: one bit for each index id.

Index ids are `segment number << 32 | row`, so bits lie far apart, and nearly all of the memory that they span is never
touched: the system gives it pages where there are rows. FAISS and Numba look a row up by its id alone.

Shapes: N rows of a segment, B bytes of bits.
"""

import mmap
import sys
from collections.abc import Iterator, Mapping
from contextlib import suppress

import faiss
import numpy as np
import numpy.typing as npt

from dpr.errors import RoomError
from dpr.index.live_rows import Mask
from dpr.index.row_ids import ROW_BITS
from dpr.index.truth import Ids

BYTE_BITS = 3
"""Bits of an id that select the bit within a byte."""
_ONLY_WHAT_IS_WRITTEN = 0x4000 if sys.platform == "linux" else 0
"""MAP_NORESERVE, which Python names from 3.13 on: the system does not check that it could back all of the memory."""
Bits = npt.NDArray[np.uint8]


class RowBits:
    """A set of rows of the segments of a snapshot."""

    def __init__(self, masks: Mapping[int, Mask]) -> None:
        """`masks` maps the number of a segment to a mask (N,) of its rows in the set."""
        self._rows = {number: len(mask_N) for number, mask_N in sorted(masks.items()) if mask_N.any()}
        self.bits_B = _untouched(max(1, (max(self._rows, default=-1) + 1) << (ROW_BITS - BYTE_BITS)))
        for number in self._rows:
            self._packed(number)[:] = np.packbits(masks[number], bitorder="little")
        self._count = sum(int(masks[number].sum()) for number in self._rows)
        self.selector = faiss.IDSelectorBitmap(len(self.bits_B), faiss.swig_ptr(self.bits_B))
        """For FAISS; it needs this object to live on."""

    def __len__(self) -> int:
        return self._count

    def contain(self, ids: Ids) -> Mask:
        """Return which ids are in the set, as a mask of the shape of `ids`; -1 is not."""
        bytes_ = ids >> BYTE_BITS
        known = (bytes_ >= 0) & (bytes_ < len(self.bits_B))
        found = np.zeros(ids.shape, np.bool_)
        found[known] = self.bits_B[bytes_[known]] >> (ids[known] & 7).astype(np.uint8) & 1
        return found

    def ids(self) -> Iterator[Ids]:
        """Yield the ids of the set, ascending: those of each segment."""
        for number, rows in self._rows.items():
            mask_N = np.unpackbits(self._packed(number), count=rows, bitorder="little")
            yield number << ROW_BITS | np.flatnonzero(mask_N)

    def _packed(self, number: int) -> Bits:
        """Return the bits of a segment."""
        first = number << (ROW_BITS - BYTE_BITS)
        return self.bits_B[first : first + -(-self._rows[number] // 8)]


def _untouched(size_bytes: int) -> Bits:
    """Return this many zero bytes, which take memory only where they are written.

    Raises RoomError if there is no room.
    """
    try:
        memory = mmap.mmap(-1, size_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _ONLY_WHAT_IS_WRITTEN)
    except OSError as error:
        raise RoomError(
            f"a filter needs {size_bytes / 1e9:.0f} GB of addresses, of which it uses little, and this process may not "
            f"have them ({error.strerror}); raise its limit (ulimit -v), or set vm.overcommit_memory to 0 or 1"
        ) from error
    with suppress(OSError):  # a system without huge pages need not avoid them
        memory.madvise(mmap.MADV_NOHUGEPAGE)  # each huge page would take 2 MiB, for the few kB of a segment
    return np.frombuffer(memory, np.uint8)
