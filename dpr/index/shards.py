"""Opening the shards of an index: FAISS indexes that hold disjoint vectors of one codebook.

PQ codes of four bits lie in the file one after another, as other codes do, so they are merged, mapped and verified in
the same way. To be searched they are turned into FAISS's FastScan, which looks up 32 vectors at a time.

Shapes: D dimensions, L lists.
"""

from collections.abc import Sequence
from pathlib import Path

import faiss

from dpr.index.faiss_file import read_faiss
from dpr.index.kinds import FAST_BITS, inverted, packed_when_opened

RANKED_BY_CODE_FROM_LISTS = 1_024
"""With fewer lists, comparing all centroids exactly takes less than a tenth of a question's time."""
CENTROID_GROUP, CENTROID_TRAIN_STEPS, RANKED_EXACTLY = 2, 5, 2
CENTROID_DIMS = range(64, 1 << 16, CENTROID_GROUP)
"""With fewer dimensions, codes of centroids are too short to rank by."""
ONE_BY_ONE = 11
"""FAISS's number for FastScan that takes the questions, and not the lists, one after another."""


def open_shards(paths: Sequence[Path]) -> list[faiss.Index]:
    """Open the shards of an index, in memory and in the form that is searched fastest.

    They share their coarse centroids, and memory holds no second copy of their lists. Raises IntegrityError as
    `read_faiss` does.
    """
    shards: list[faiss.Index] = []
    for path in paths:
        shards.append(open_shard(path, shards[0] if shards else None))
    return shards


def open_shard(path: Path, first: faiss.Index | None = None) -> faiss.Index:
    """Open one shard; it shares the coarse centroids of `first`, a shard of the same codebook, if that is given."""
    index = read_faiss(path, mapped=True)
    if not packed_when_opened(index):
        del index  # or both would be in memory
        index = read_faiss(path)
        if first is not None and inverted(index) is not None:
            _share_centroids(inverted(index), inverted(first))
        return index
    fast = faiss.IndexIVFPQFastScan(index)
    flat = faiss.downcast_index(index.quantizer)
    ranked = isinstance(flat, faiss.IndexFlat) and flat.ntotal >= RANKED_BY_CODE_FROM_LISTS and flat.d in CENTROID_DIMS
    fast.own_fields = first is None
    if first is not None:
        fast.quantizer = first.quantizer
    elif ranked:
        fast.quantizer = _ranked_by_code(flat)
    else:
        index.own_fields = False  # the coarse centroids go along, the mapped lists do not
    fast.orig_invlists = None
    fast.implem = ONE_BY_ONE
    del fast.referenced_objects  # the mapped index, of which nothing is needed any more
    return fast


def _share_centroids(ivf: faiss.IndexIVF, first: faiss.IndexIVF) -> None:
    """Let an index use the centroids of another, which must outlive it; its own are freed."""
    own = faiss.downcast_index(ivf.quantizer)
    ivf.own_fields = False
    ivf.quantizer = first.quantizer
    # freed by FAISS, since Python's wrapper of an object that it did not make must not free it
    own.reset()
    owner = faiss.IndexIDMap(own)
    owner.own_fields = True
    del owner.referenced_objects


def _ranked_by_code(flat: faiss.IndexFlat) -> faiss.Index:
    """Return an index that ranks centroids by codes of four bits, and the first of them exactly.

    Twice the requested number are ranked exactly. So an eighth of the memory is read, and 99.8% of the lists visited
    are those that exact comparison gives.
    """
    centroids_LD = flat.reconstruct_n(0, flat.ntotal)
    coded = faiss.IndexPQFastScan(flat.d, flat.d // CENTROID_GROUP, FAST_BITS, flat.metric_type)
    coded.pq.cp.niter, coded.pq.cp.min_points_per_centroid = CENTROID_TRAIN_STEPS, 1
    coded.train(centroids_LD)
    coded.add(centroids_LD)
    ranked = faiss.IndexRefineFlat(coded, faiss.swig_ptr(centroids_LD))
    ranked.k_factor = RANKED_EXACTLY
    ranked.own_fields = True
    for given_away in (coded, ranked):
        given_away.this.disown()
    return ranked
