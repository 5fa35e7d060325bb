"""The serving index: one FAISS index, or several (shards) that hold disjoint vectors of one codebook.

PQ codes of four bits lie in the file one after another, as other codes do, so that they are merged, mapped and verified
as these. To be searched they are turned into FAISS's FastScan, which looks up 32 vectors at a time.

Shapes: Q questions, K hits, D dimensions, L lists.
"""

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

import faiss
import numpy as np

from dpr.index.candidates import search
from dpr.index.contents import list_sizes
from dpr.index.kinds import FAST_BITS, inverted, packed_when_opened, searched
from dpr.index.training import read_index
from dpr.index.truth import Ids, Scores, merge_topk

QUICK_FROM_LISTS = 1_024
"""With fewer, comparing all centroids exactly takes less than a tenth of a question's time."""
QUICK_GROUP, QUICK_STEPS, QUICK_FACTOR = 2, 5, 2
QUICK_DIMS = range(64, 1 << 16, QUICK_GROUP)
"""Of fewer dimensions, codes are short and say too little."""
ONE_BY_ONE = 11
"""FAISS's number for FastScan that takes the questions, and not the lists, one after another."""


def open_shard(path: Path) -> faiss.Index:
    """The index of a file, in memory and in the form that is searched fastest. Raises IntegrityError as `read_index`.

    Beyond the index itself, memory holds no second copy of its lists.
    """
    index = read_index(path, mapped=True)
    if not packed_when_opened(index):
        del index  # or both would be in memory
        return read_index(path)
    fast = faiss.IndexIVFPQFastScan(index)
    flat = faiss.downcast_index(index.quantizer)
    if isinstance(flat, faiss.IndexFlat) and flat.ntotal >= QUICK_FROM_LISTS and flat.d in QUICK_DIMS:
        fast.quantizer = _quick(flat)
    else:
        index.own_fields = False  # the coarse centroids go along, the mapped lists do not
    fast.own_fields = True
    fast.orig_invlists = None
    fast.implem = ONE_BY_ONE
    del fast.referenced_objects  # the mapped index, of which nothing is needed any more
    return fast


def _quick(flat: faiss.IndexFlat) -> faiss.Index:
    """Ranks centroids by codes of four bits, and exactly only the first, twice as many as are asked for.

    The memory read is an eighth. Of the lists visited, 998 in 1,000 are those that exact comparison gives.
    """
    centroids_LD = flat.reconstruct_n(0, flat.ntotal)
    coded = faiss.IndexPQFastScan(flat.d, flat.d // QUICK_GROUP, FAST_BITS, flat.metric_type)
    coded.pq.cp.niter, coded.pq.cp.min_points_per_centroid = QUICK_STEPS, 1
    coded.train(centroids_LD)
    coded.add(centroids_LD)
    quick = faiss.IndexRefineFlat(coded, faiss.swig_ptr(centroids_LD))
    quick.k_factor = QUICK_FACTOR
    quick.own_fields = True
    for given_away in (coded, quick):
        given_away.this.disown()
    return quick


class ServingIndex:
    """Shards that are searched as one index.

    Shards share their codebook, so each visits the lists that the one index would visit, and scores as it would: the k
    best of all shards are the k best of the one index (among equal scores, others of these may be found). Graphs are
    the exception: each shard has its own.
    """

    def __init__(self, shards: Sequence[faiss.Index]) -> None:
        self.shards = list(shards)

    @property
    def rows(self) -> int:
        """Vectors in all shards."""
        return sum(int(shard.ntotal) for shard in self.shards)

    @property
    def dim(self) -> int:
        """Components of a vector."""
        return int(self.shards[0].d)

    @cached_property
    def lists(self) -> int:
        """Inverted lists; 0 for a kind without."""
        ivf = inverted(self.shards[0])
        return 0 if ivf is None else int(ivf.nlist)

    def search(self, questions_QD: Scores, k: int, nprobe: int) -> tuple[Scores, Ids]:
        """The k best by the index's own scores, as `dpr.index.candidates.search` gives them."""
        found = [search(shard, questions_QD, k, nprobe) for shard in self.shards]
        return found[0] if len(found) == 1 else merge_topk(found, k)

    def centroids_compared(self) -> int:
        """Coarse centroids that a question is compared with, in all shards."""
        return self.lists * len(self.shards)

    def visited(self, nprobe: int) -> float:
        """Vectors that a question is compared with on average, if questions fall into lists as vectors do.

        In a graph: the neighbours of as many vectors as its search keeps.
        """
        if not self.lists or not self.rows:
            return float(sum(_visited_without_lists(shard) for shard in self.shards))
        return float(min(nprobe * self._squares / self.rows, self.rows))

    @cached_property
    def _squares(self) -> float:
        sizes_L = sum((list_sizes(shard) for shard in self.shards), np.zeros(self.lists, np.int64))
        return float(np.square(sizes_L, dtype=np.float64).sum())


def _visited_without_lists(shard: faiss.Index) -> int:
    graph = searched(shard)
    if isinstance(graph, faiss.IndexHNSW):
        return min(int(shard.ntotal), int(graph.hnsw.efSearch) * int(graph.hnsw.nb_neighbors(0)))
    return int(shard.ntotal)
