"""Finding the inverted list that a vector goes to, without comparing it with the centroids of all lists.

There are at least four times as many lists as the root of the vectors (`dpr.index.choose`), so with all comparisons the
work of coding would grow with their number to the power of 1.5. So from `MANY_LISTS` lists on, the centroids are
grouped, as many groups as the root of the lists. A vector is compared with the centres of all groups, and then with the
lists of the 16 groups whose centres are nearest. Of real vectors and 16,384 lists, 99% go to the list that all
comparisons give, in a fifth of the time; the others go to one nearby, so that a search finds 0.1% fewer of the true
neighbours.

The groups follow from the centroids alone. So the list of a vector follows from vector and codebook, on all hardware
and in all nights, except where two scores are equal within rounding.

Shapes: N vectors, D dimensions, L lists, G groups, n vectors near a group, l lists of a group.
"""

import math
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import faiss
import numpy as np

from dpr.index.hardware import Lists, bulk_threads, serial_blas
from dpr.index.products import Single, slices

MANY_LISTS = 8_192
"""With fewer lists, all comparisons cost less than embedding does, even by the smallest encoders."""
NEAR_GROUPS = 16
CALL_ROWS = 8_192
"""Vectors that one thread takes at a time."""
STEPS = 2
"""Steps of k-means that move the centres of groups from the centroids where they start."""


@dataclass(frozen=True)
class ListGroups:
    """The lists of a codebook in groups."""

    centres_GD: Single
    group_L: Lists
    """The group of each list."""
    coarse_LD: Single

    @classmethod
    def of(cls, coarse_LD: Single) -> "ListGroups":
        """Group the lists with these centroids (L, D)."""
        lists = len(coarse_LD)
        centres_GD = coarse_LD[:: max(1, lists // math.isqrt(lists))].copy()
        for _ in range(STEPS):
            group_L = _nearest(coarse_LD, centres_GD)
            for group in np.unique(group_L).tolist():
                centres_GD[group] = coarse_LD[group_L == group].mean(axis=0)
            centres_GD = of_length_one(centres_GD)
        return cls(centres_GD, _nearest(coarse_LD, centres_GD), coarse_LD)

    def lists(self, vectors_ND: Single) -> Lists:
        """Return the list (N,) of each vector."""
        lists_N = np.empty(len(vectors_ND), np.int64)

        def find(some: slice) -> None:
            lists_N[some] = self._lists(vectors_ND[some])

        with serial_blas(), ThreadPoolExecutor(bulk_threads()) as pool:
            list(pool.map(find, slices(len(vectors_ND), CALL_ROWS)))
        return lists_N

    def _lists(self, vectors_ND: Single) -> Lists:
        scores_NG = vectors_ND @ self.centres_GD.T
        last = max(0, scores_NG.shape[1] - NEAR_GROUPS)
        near_GN = np.ascontiguousarray((scores_NG >= np.partition(scores_NG, last, axis=1)[:, last, None]).T)
        best_N = np.full(len(vectors_ND), -np.inf, np.float32)
        lists_N = np.zeros(len(vectors_ND), np.int64)
        # reused, since the system clears new memory page by page, which takes longer than the products
        scores = np.empty(len(vectors_ND) * np.bincount(self.group_L).max(), np.float32)
        for group, near_N in enumerate(near_GN):
            lists_l, rows_n = np.flatnonzero(self.group_L == group), np.flatnonzero(near_N)
            if len(lists_l) and len(rows_n):
                scores_nl = scores[: len(rows_n) * len(lists_l)].reshape(len(rows_n), len(lists_l))
                np.matmul(vectors_ND[rows_n], self.coarse_LD[lists_l].T, out=scores_nl)
                first_n = scores_nl.argmax(axis=1)
                best_n = np.take_along_axis(scores_nl, first_n[:, None], axis=1)[:, 0]
                better_n = best_n > best_N[rows_n]
                best_N[rows_n[better_n]] = best_n[better_n]
                lists_N[rows_n[better_n]] = lists_l[first_n[better_n]]
        return lists_N


def groups_of(ivf: faiss.IndexIVF) -> ListGroups | None:
    """Return the groups of an index's lists; None if it has few, or FAISS finds them in a way of its own."""
    quantizer = faiss.downcast_index(ivf.quantizer)
    if ivf.nlist < MANY_LISTS or not isinstance(quantizer, faiss.IndexFlat):
        return None
    return ListGroups.of(quantizer.reconstruct_n(0, ivf.nlist))


def of_length_one(vectors_ND: Single) -> Single:
    """Return vectors (N, D) divided by their lengths; those of length 0 stay."""
    lengths_N1 = np.linalg.norm(vectors_ND, axis=1, keepdims=True)
    scaled_ND: Single = vectors_ND / np.maximum(lengths_N1, np.finfo(np.float32).tiny)
    return scaled_ND


def _nearest(vectors_ND: Single, centroids_LD: Single) -> Lists:
    """Return which centroid has the largest inner product with each vector; of equal ones, the first."""
    found_N: Lists = (vectors_ND @ centroids_LD.T).argmax(axis=1)
    return found_N
