"""Which ids of an index live. Search skips the others until their shard is rewritten.

Shapes: Q questions, C candidates.
"""

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from dpr.formats import MISSING
from dpr.index.row_ids import ROW_BITS, ROW_MASK
from dpr.index.truth import Ids

Mask = npt.NDArray[np.bool_]


class LiveRows:
    """Live rows of the segments of a snapshot: one byte a row."""

    def __init__(self, lives: Mapping[int, Mask]) -> None:
        """`lives` maps the number of a segment to a mask of its live rows."""
        numbers = sorted(lives)
        self._first_of_number = np.full(max(numbers, default=-1) + 2, MISSING, np.int64)
        starts = np.cumsum([0, *(len(lives[number]) for number in numbers)])
        self._first_of_number[numbers] = starts[:-1]
        self._lives = np.concatenate([np.empty(0, np.bool_), *(lives[number] for number in numbers)])

    def contain(self, ids: Ids) -> Mask:
        """Return which ids live, as a mask of the shape of `ids`. Ids of removed segments, and -1, do not."""
        numbers = np.where(ids == MISSING, len(self._first_of_number) - 1, ids >> ROW_BITS)
        firsts = self._first_of_number[np.minimum(numbers, len(self._first_of_number) - 1)]
        there = firsts != MISSING
        living = np.zeros(ids.shape, np.bool_)
        living[there] = self._lives[firsts[there] + (ids[there] & ROW_MASK)]
        return living
