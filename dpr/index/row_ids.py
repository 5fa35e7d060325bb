"""Ids of vectors in an index: `segment_number << 32 | row`. Shapes: N rows."""

from typing import Any

import numpy as np
import numpy.typing as npt

from dpr.errors import IntegrityError

ROW_BITS = 32
ROW_MASK = (1 << ROW_BITS) - 1
MAX_SEGMENT_NUMBER = 2**31 - 1


def index_ids(segment_number: int, rows_N: npt.NDArray[np.integer[Any]]) -> npt.NDArray[np.int64]:
    """Return index ids (N,) int64 of rows (N,) of a segment. Raises IntegrityError for a number out of range."""
    if not 0 <= segment_number <= MAX_SEGMENT_NUMBER:
        raise IntegrityError(f"segment number {segment_number} is outside 0 to {MAX_SEGMENT_NUMBER}")
    return np.int64(segment_number) << ROW_BITS | rows_N.astype(np.int64)
