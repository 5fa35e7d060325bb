"""The rule for which segments a run copies into new ones: mostly dead ones, and small ones if there are many."""

import numpy as np
import numpy.typing as npt

JOINED_AT_ONCE = 8
"""Small segments of one size tier are joined once there are this many."""
_TIERS = 16


def segments_to_copy(
    rows: npt.NDArray[np.int64], live: npt.NDArray[np.int64], segment_rows: int, compact_below: float
) -> npt.NDArray[np.bool_]:
    """Return which of N segments are copied into new segments, as a mask (N,).

    `rows` and `live` (N,) are the rows and the live rows of each segment.

    A segment is copied if its share of live rows is below `compact_below`. A segment is small if it has fewer live
    rows than a quarter of `segment_rows`. Small segments are sorted into tiers by size, each tier 8 times as large as
    the one below, and 8 segments of one tier are joined. The result is in a higher tier or no longer small. So a row is
    copied at most once in each tier (5 times if `segment_rows` is 50,000), and any number of nights leaves at most 7
    small segments in each tier, besides those of the last night.
    """
    dead = (live == 0) | (live < compact_below * rows)
    # dividing by powers of two is exact, so all machines compute the same bounds
    bounds = segment_rows / (4.0 * JOINED_AT_ONCE ** np.arange(_TIERS))
    tier = (live[:, None] < bounds).sum(axis=1)
    crowded = np.bincount(tier, minlength=1)[tier] >= JOINED_AT_ONCE
    copied: npt.NDArray[np.bool_] = dead | ((tier > 0) & crowded)
    return copied
