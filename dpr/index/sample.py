"""A uniform random sample over the live rows of all segments."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt


def sample_rows(live_counts: Sequence[int], size: int, seed: int) -> list[npt.NDArray[np.int64]]:
    """`size` live rows drawn without replacement, every subset equally likely (all rows, if there are no more).

    `live_counts` holds the live rows of each segment. Returns, for each segment, the sorted ranks that were drawn, rank
    0 being its first live row. Memory grows with the sample, not with the collection.
    """
    ends = np.cumsum(np.asarray(live_counts, np.int64))
    total = int(ends[-1]) if len(ends) else 0
    if size >= total:
        drawn = np.arange(total)
    else:
        # choice() holds 50 numbers per drawn one at most, which is less than the vectors to be read will take
        drawn = np.sort(np.random.default_rng(seed).choice(total, size, replace=False, shuffle=False))
    starts = ends - np.asarray(live_counts, np.int64)
    bounds = np.searchsorted(drawn, np.append(starts, total))
    return [drawn[first:last] - start for first, last, start in zip(bounds, bounds[1:], starts, strict=False)]
