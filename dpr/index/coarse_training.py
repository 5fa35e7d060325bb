"""Training the coarse centroids of an index on CPU threads, one for each inverted list.

FAISS alone compares all vectors with all centroids ten times. The first steps only move random centroids to where
vectors are, for which a quarter of the vectors is enough. And of many centroids, a vector is compared with those of
near groups only, as when it is coded (`dpr.index.list_groups`).

Shapes: N vectors, D dimensions, L lists.
"""

import faiss
import numpy as np

from dpr.index.hardware import Lists
from dpr.index.list_groups import MANY_LISTS, ListGroups, of_length_one
from dpr.index.products import Single, slices
from dpr.index.sample import ROWS_PER_LIST

FIRST_ROWS_STEP = 4
"""The first steps of k-means see every 4th vector of the sample, which is in random order or in that of the corpus."""
FIRST_ROWS_PER_LIST = 8
"""With fewer of them for each list, all steps see the whole sample."""
LAST_STEPS = 4
"""The last steps see all vectors."""
SUM_ROWS = 65_536
"""Vectors that are put in the order of their lists at a time."""
SPLIT_SHIFT = 1 / 1024
"""Relative distance of the two halves of a split cluster (FAISS's value)."""


def train_coarse(index: faiss.Index, sample_ND: Single, seed: int) -> None:
    """Train the coarse centroids of an index; the same sample and seed give the same ones.

    An index whose lists are not found by comparing all centroids, or with few lists and a small sample, is left as it
    is: FAISS then trains it in its own way.
    """
    if not isinstance(index, faiss.IndexIVF) or not isinstance(faiss.downcast_index(index.quantizer), faiss.IndexFlat):
        return
    by_groups = index.nlist >= MANY_LISTS and index.cp.spherical
    if not by_groups and len(sample_ND) < ROWS_PER_LIST * index.nlist:
        return
    first_ND, first_steps = np.ascontiguousarray(sample_ND[::FIRST_ROWS_STEP]), max(0, index.cp.niter - LAST_STEPS)
    if by_groups and len(first_ND) < FIRST_ROWS_PER_LIST * index.nlist:
        first_ND = sample_ND
    schedule = ((first_steps, first_ND), (LAST_STEPS, sample_ND))
    if by_groups:
        centroids_LD = _drawn(first_ND, index.nlist, seed)
        for steps, vectors_ND in schedule:
            for _ in range(steps):
                centroids_LD = moved(centroids_LD, vectors_ND)
        index.quantizer.reset()
        index.quantizer.add(centroids_LD)
    else:
        clustering = faiss.Clustering(index.d, index.nlist, index.cp)
        for steps, vectors_ND in schedule:
            clustering.niter = steps
            clustering.train(vectors_ND, index.quantizer)  # starts from the centroids that it has, and leaves them
    index.quantizer.is_trained = True


def _drawn(vectors_ND: Single, lists: int, seed: int) -> Single:
    """Return as many of the vectors, of length 1, as there are lists."""
    rows = np.random.default_rng(seed).choice(len(vectors_ND), lists, replace=False)
    return of_length_one(vectors_ND[np.sort(rows)])


def moved(centroids_LD: Single, vectors_ND: Single) -> Single:
    """Return the centroids (L, D) after a step of spherical k-means in which vectors go to lists of near groups."""
    lists = len(centroids_LD)
    lists_N = ListGroups.of(centroids_LD).lists(vectors_ND)
    counts_L = np.bincount(lists_N, minlength=lists)
    sums_LD = _sums(vectors_ND, lists_N, lists)
    empty, largest = np.flatnonzero(counts_L == 0), np.argsort(-counts_L, kind="stable")
    means_LD = of_length_one(np.where(counts_L[:, None] > 0, sums_LD, centroids_LD))
    halve(means_LD, largest[: len(empty)], empty)
    return means_LD


def halve(centroids_LD: Single, full: Lists | int, empty: Lists | int) -> None:
    """Move full lists apart into two, as FAISS does; the second halves take the places of empty lists."""
    shift_D = np.where(np.arange(centroids_LD.shape[1]) % 2 == 0, SPLIT_SHIFT, -SPLIT_SHIFT).astype(np.float32)
    centroids_LD[empty] = centroids_LD[full] * (1 + shift_D)
    centroids_LD[full] *= 1 - shift_D


def _sums(vectors_ND: Single, lists_N: Lists, lists: int) -> Single:
    """Return the sum (L, D) of the vectors of each list, added in the order of the rows."""
    sums_LD = np.zeros((lists, vectors_ND.shape[1]), np.float32)
    for some in slices(len(vectors_ND), SUM_ROWS):
        order_n = np.argsort(lists_N[some], kind="stable")
        there, starts = np.unique(lists_N[some][order_n], return_index=True)
        sums_LD[there] += np.add.reduceat(vectors_ND[some][order_n], starts, axis=0)
    return sums_LD
