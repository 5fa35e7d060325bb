"""Which segments a run copies into new ones: the mostly dead, and the small once there are many of a size."""

import numpy as np
import numpy.typing as npt

JOINED_AT_ONCE = 8
"""So many small segments of one size tier are joined."""
_TIERS = 16


def segments_to_copy(
    rows: npt.NDArray[np.int64], live: npt.NDArray[np.int64], segment_rows: int, compact_below: float
) -> npt.NDArray[np.bool_]:
    """Which segments (N,) give up their live rows to new segments, given all rows and live rows of each.

    A segment is copied if its share of live rows is below `compact_below`. A segment is small if it has fewer live rows
    than half of `segment_rows`, and sizes fall into tiers, each 8 times the one below; 8 segments of a tier are joined.
    The result is in a higher tier or not small, so a row is copied at most once a tier (for 50,000: 6 times), and
    hundreds of nights leave at most 7 small segments a tier and those of the last night.
    """
    dead = (live == 0) | (live < compact_below * rows)
    # powers of two divide exactly, so that all machines agree
    bounds = segment_rows / (2.0 * JOINED_AT_ONCE ** np.arange(_TIERS))
    tier = (live[:, None] < bounds).sum(axis=1)
    crowded = np.bincount(tier, minlength=1)[tier] >= JOINED_AT_ONCE
    copied: npt.NDArray[np.bool_] = dead | ((tier > 0) & crowded)
    return copied
