"""The training sample: how many and which vectors a codebook is trained on.

The sample has 64 vectors for each inverted list and 256 for each centroid of a code, and at least 1,000.
"""

import math
from collections.abc import Sequence

import faiss
import numpy as np
import numpy.typing as npt

from dpr.index.hardware import Floats
from dpr.index.kinds import code_centroids, list_count
from dpr.index.products import slices

ROWS_PER_LIST = 64
ROWS_PER_CODE_CENTROID = 256
MIN_ROWS = 1_000
HASHED_ROWS = 4_096
ROWS_PER_CENTROID = 39
"""FAISS warns below this: with fewer vectors, k-means centroids are little more than copies of training vectors."""


def training_rows(index: faiss.Index) -> tuple[int, int]:
    """Return the minimum and the recommended number of training vectors of an untrained index. Pure."""
    if index.is_trained:
        return 0, MIN_ROWS
    lists, codes = list_count(index), code_centroids(index)
    return max(lists, codes, 1), max(lists * ROWS_PER_LIST, codes * ROWS_PER_CODE_CENTROID, MIN_ROWS)


def describe_sample(index: faiss.Index, rows: int, train_rows: int) -> list[str]:
    """Return sentences on an index's training sample, with a warning if it is small; none if it needs no training."""
    if index.is_trained:
        return []
    sampled = "all there are" if train_rows == rows else f"sampled from {rows}"
    sentences = [f"trained on {train_rows} vectors, {sampled}"]
    centroids = max(list_count(index), code_centroids(index))
    if train_rows < ROWS_PER_CENTROID * centroids:
        sentences.append(
            f"{train_rows} training vectors are fewer than {ROWS_PER_CENTROID} for each of {centroids} centroids, "
            "so vectors that come later will be coded less well than these"
        )
    return sentences


def sample_rows(live_counts: Sequence[int], size: int, seed: int) -> list[npt.NDArray[np.int64]]:
    """Draw `size` live rows without replacement, every subset equally likely (all rows, if there are no more).

    `live_counts` holds the live rows of each segment. Returns, for each segment, the sorted ranks that were drawn; rank
    0 is its first live row. Memory grows with the sample, not with the collection.
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


def distinct_rows(vectors_ND: Floats) -> npt.NDArray[np.int64]:
    """Return which rows (n,) of vectors (N, D) equal none before them, ascending.

    k-means gives a vector that occurs a thousand times many centroids, all in the same place. Rows are compared by a
    64-bit hash, so of a billion pairs of different vectors hardly one is taken for equal.
    """
    row_bytes = vectors_ND.shape[1] * vectors_ND.itemsize
    words = np.ascontiguousarray(vectors_ND).view(f"u{math.gcd(8, row_bytes)}")
    weights_W = np.random.default_rng(0).integers(0, 2**64, words.shape[1], np.uint64)
    hashes = [(words[some] * weights_W).sum(axis=1) for some in slices(len(words), HASHED_ROWS)]
    first_n = np.unique(np.concatenate([np.empty(0, np.uint64), *hashes]), return_index=True)[1]
    return np.sort(first_n)
