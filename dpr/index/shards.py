"""Opening the shards of an index: FAISS indexes that hold disjoint vectors of one codebook.

PQ codes of four bits lie in the file one after another, as other codes do, so they are merged, mapped and verified in
the same way. For searching they are converted to FAISS's FastScan layout, which looks up 32 vectors at a time.

Shapes: D dimensions, L lists.
"""

from pathlib import Path
from typing import TypeAlias

import faiss

from dpr.index.faiss_file import read_faiss
from dpr.index.hardware import faiss_threads
from dpr.index.kinds import FAST_BITS, inverted, packed_when_opened

RANKED_BY_CODE_FROM_LISTS = 1_024
"""With fewer lists, comparing all centroids exactly takes less than a tenth of a question's time."""
CENTROID_GROUP, CENTROID_TRAIN_STEPS, RANKED_EXACTLY = 2, 5, 2
CENTROID_DIMS = range(64, 1 << 16, CENTROID_GROUP)
"""With fewer dimensions, codes of centroids are too short to rank by."""
ONE_BY_ONE = 11
"""FAISS's number for FastScan that takes the questions, and not the lists, one after another."""


Shard: TypeAlias = faiss.Index
"""An open shard."""


def open_shard(path: Path, other: Shard | None = None) -> Shard:
    """Open a shard of an index, in memory and in the form that is searched fastest; there is no second copy of lists.

    It shares the coarse centroids of `other`, an open shard of the same codebook, and either may be dropped before the
    other. Raises IntegrityError as `read_faiss` does.
    """
    index = read_faiss(path, mapped=True)
    if not packed_when_opened(index):
        del index  # otherwise both would be in memory
        index = read_faiss(path)
        if (ivf := inverted(index)) is not None:
            own = _take_centroids(ivf)
            _set_centroids(index, ivf, own if other is None else _owner(other))
        return index
    fast = faiss.IndexIVFPQFastScan(index)
    own = _take_centroids(index)
    fast.own_fields = False
    _set_centroids(fast, fast, _searched_centroids(own) if other is None else _owner(other))
    fast.orig_invlists = None
    fast.implem = ONE_BY_ONE
    return fast


def _take_centroids(ivf: faiss.IndexIVF) -> faiss.IndexPreTransform:
    """Take the coarse centroids from an index; returns their new owner."""
    ivf.own_fields = False
    return _owned(ivf.quantizer)


def _owned(centroids: faiss.Index) -> faiss.IndexPreTransform:
    """Return an owner that frees coarse centroids when Python drops it.

    Python's wrapper of an object that FAISS made must not free it, and that of an object that holds it may.
    """
    owner = faiss.IndexPreTransform(centroids)
    owner.own_fields = True
    del owner.referenced_objects
    return owner


def _set_centroids(index: faiss.Index, ivf: faiss.IndexIVF, owner: faiss.IndexPreTransform) -> None:
    """Let an open shard use coarse centroids, and hold their owner; it holds nothing else, such as a mapped index."""
    ivf.quantizer = owner.index
    index.referenced_objects = [owner]


def _owner(index: faiss.Index) -> faiss.IndexPreTransform:
    (owner,) = index.referenced_objects
    return owner


def _searched_centroids(owner: faiss.IndexPreTransform) -> faiss.IndexPreTransform:
    """Return coarse centroids in the form that is searched fastest."""
    flat = faiss.downcast_index(owner.index)
    ranked = isinstance(flat, faiss.IndexFlat) and flat.ntotal >= RANKED_BY_CODE_FROM_LISTS and flat.d in CENTROID_DIMS
    return _owned(_ranked_by_code(flat)) if ranked else owner


def _ranked_by_code(flat: faiss.IndexFlat) -> faiss.Index:
    """Return an index that ranks centroids by codes of four bits, and the first of them exactly.

    Twice the requested number are ranked exactly. So an eighth of the memory is read, and 99.8% of the lists visited
    are those that exact comparison gives.
    """
    centroids_LD = flat.reconstruct_n(0, flat.ntotal)
    coded = faiss.IndexPQFastScan(flat.d, flat.d // CENTROID_GROUP, FAST_BITS, flat.metric_type)
    coded.pq.cp.niter, coded.pq.cp.min_points_per_centroid = CENTROID_TRAIN_STEPS, 1
    with faiss_threads(1):  # otherwise each of hundreds of short clusterings would wait for all threads
        coded.train(centroids_LD)
    coded.add(centroids_LD)
    ranked = faiss.IndexRefineFlat(coded, faiss.swig_ptr(centroids_LD))
    ranked.k_factor = RANKED_EXACTLY
    ranked.own_fields = True
    for given_away in (coded, ranked):
        given_away.this.disown()
    return ranked
