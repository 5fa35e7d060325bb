"""The index that is searched: one FAISS index, or several (shards) that hold disjoint vectors of one codebook.

PQ codes of four bits lie in the file one after another, as other codes do, so they are merged, mapped and verified in
the same way. To be searched they are turned into FAISS's FastScan, which looks up 32 vectors at a time.

Shapes: Q questions, K hits, D dimensions, L lists.
"""

import math
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

import faiss
import numpy as np
import numpy.typing as npt

from dpr.formats import MISSING
from dpr.index.candidates import Lists, first_of, nearest_lists, search
from dpr.index.contents import list_sizes
from dpr.index.faiss_file import read_faiss
from dpr.index.kinds import FAST_BITS, inverted, list_count, packed_when_opened, searched
from dpr.index.live_rows import LiveRows
from dpr.index.loose_index import LooseIndex
from dpr.index.truth import Ids, Scores, merge_topk

RANKED_BY_CODE_FROM_LISTS = 1_024
"""With fewer lists, comparing all centroids exactly takes less than a tenth of a question's time."""
CENTROID_GROUP, CENTROID_TRAIN_STEPS, RANKED_EXACTLY = 2, 5, 2
CENTROID_DIMS = range(64, 1 << 16, CENTROID_GROUP)
"""With fewer dimensions, codes of centroids are too short to rank by."""
SPARE_FACTOR, SPARE_CANDIDATES = 1.2, 8
"""Candidates asked for beyond those that are expected to live, so that few questions are searched again."""
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


class ServingIndex:
    """Shards that are searched as one index; dead rows are never found.

    Shards share their codebook. So each visits the lists that the one index would visit, and scores as it would: the k
    best of all shards are the k best of the one index (among equal scores, others of these may be found). Graphs are
    the exception: each shard has its own. Loose rows are searched as a shard that compares all its vectors.
    """

    def __init__(
        self,
        shards: Sequence[faiss.Index],
        live: LiveRows | None = None,
        dead_shares: Sequence[float] = (),
        loose: LooseIndex | None = None,
    ) -> None:
        """`live`: which ids live, None: all do; `dead_shares`: the share of dead rows of each shard; `loose`: live."""
        self.shards = list(shards)
        self.loose = loose
        self._live = live
        self._dead_shares = list(dead_shares) or [0.0] * len(self.shards)

    @property
    def rows(self) -> int:
        """Return the vectors in all shards."""
        return sum(int(shard.ntotal) for shard in self.shards)

    @property
    def dim(self) -> int:
        """Return the width of a vector."""
        return int(self.shards[0].d)

    @cached_property
    def lists(self) -> int:
        """Return the inverted lists of a shard; 0 for a kind without."""
        return list_count(self.shards[0])

    @cached_property
    def is_graph(self) -> bool:
        """Return whether shards are searched by following links, with `nprobe` candidates kept."""
        return isinstance(searched(self.shards[0]), faiss.IndexHNSW)

    def search(self, questions_QD: Scores, k: int, nprobe: int) -> tuple[Scores, Ids]:
        """Return the k best live rows by the index's own scores, as `dpr.index.candidates.search` gives them.

        An empty list does not count as visited.
        """
        chosen = self.lists and len(questions_QD) and (len(self.shards) > 1 or self._empty_L.any())
        lists = nearest_lists(self.shards[0], questions_QD, nprobe, self._empty_L) if chosen else None
        found = []
        for shard, dead_share in zip(self.shards, self._dead_shares, strict=True):
            spare = math.ceil(k * SPARE_FACTOR / (1.0 - min(dead_share, 0.5))) + SPARE_CANDIDATES if dead_share else k
            found.append(self._search_live(shard, questions_QD, (k, spare, nprobe), lists))
        if self.loose is not None:
            found.append(self.loose.search(questions_QD, k))
        return found[0] if len(found) == 1 else merge_topk(found, k)

    def _search_live(
        self, shard: faiss.Index, questions_QD: Scores, size: tuple[int, int, int], lists: Lists | None
    ) -> tuple[Scores, Ids]:
        """Return the k best live rows among the first `width` candidates of a shard, or more if too few live."""
        k, width, nprobe = size
        if self._live is None or width == k:
            return search(shard, questions_QD, k, nprobe, lists)
        width = min(int(shard.ntotal), width)
        scores_QC, ids_QC = search(shard, questions_QD, width, nprobe, lists)
        live_QC = self._live.contain(ids_QC)
        found = first_of(scores_QC, ids_QC, live_QC, k)
        more_Q = ids_QC[:, -1] != MISSING if width < int(shard.ntotal) else np.zeros(len(ids_QC), np.bool_)
        short = np.flatnonzero((live_QC.sum(axis=1) < k) & more_Q)
        if len(short):
            some = None if lists is None else (lists[0][short], lists[1][short])
            again = self._search_live(shard, questions_QD[short], (k, 2 * width, nprobe), some)
            found[0][short], found[1][short] = again
        return found

    def centroids_compared(self) -> int:
        """Return the coarse centroids that a question is compared with, in all shards."""
        return self.lists * len(self.shards)

    def visited(self, nprobe: int) -> float:
        """Return the vectors of shards that a question is compared with, on average, if it falls into lists as they do.

        In a graph: the neighbours of as many vectors as its search keeps.
        """
        if not self.lists or not self.rows:
            return float(sum(_visited_without_lists(shard, nprobe) for shard in self.shards))
        return float(min(nprobe * self._squares / self.rows, self.rows))

    @cached_property
    def living_rows(self) -> int:
        """Return the rows that can be found."""
        sizes = zip(self.shards, self._dead_shares, strict=True)
        return sum(round(int(shard.ntotal) * (1.0 - share)) for shard, share in sizes) + len(self.loose or ())

    @cached_property
    def _sizes_L(self) -> npt.NDArray[np.int64]:
        """Return how many vectors each list has, in all shards."""
        return sum((list_sizes(shard) for shard in self.shards), np.zeros(self.lists, np.int64))

    @cached_property
    def _empty_L(self) -> npt.NDArray[np.bool_]:
        """Return which lists have no vector in any shard."""
        empty_L: npt.NDArray[np.bool_] = self._sizes_L == 0
        return empty_L

    @cached_property
    def _squares(self) -> float:
        """Return the sum of the squared sizes of all lists."""
        return float(np.square(self._sizes_L, dtype=np.float64).sum())


def _visited_without_lists(shard: faiss.Index, ef: int) -> int:
    graph = searched(shard)
    if isinstance(graph, faiss.IndexHNSW):
        return min(int(shard.ntotal), ef * int(graph.hnsw.nb_neighbors(0)))
    return int(shard.ntotal)
