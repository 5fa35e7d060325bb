"""The index that is searched: one FAISS index, or several (shards) that hold disjoint vectors of one codebook.

Shapes: Q questions, K hits, D dimensions, L lists, P lists that a question may visit.
"""

import math
from collections.abc import Sequence
from functools import cached_property

import faiss
import numpy as np
import numpy.typing as npt

from dpr.formats import MISSING
from dpr.index.candidates import Lists, first_of, nearest_lists, search
from dpr.index.contents import list_sizes, stored_ids
from dpr.index.kinds import list_count, searched
from dpr.index.live_rows import LiveRows
from dpr.index.loose_index import LooseIndex
from dpr.index.truth import Ids, Scores, first_by_score, merge_topk

SPARE_FACTOR, SPARE_CANDIDATES = 1.2, 8
"""Extra candidates beyond those expected to live, so that few questions are searched again."""
FIRST_ROWS_TIMES = 2
"""Minimum of rows in the lists that are visited first, as a multiple of the hits that settings are tuned for."""
NEAR_TIMES, MAX_TIMES = 2, 4
"""Lists ranked for a question that visits as many as it needs, as multiples of the average: at first, and at most."""


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

    def search(
        self,
        questions_QD: Scores,
        k: int,
        nprobe: int,
        margin: float | None = None,
        at: int = 0,
        hits: int | None = None,
    ) -> tuple[Scores, Ids]:
        """Return the k best live rows by the index's own scores, as `dpr.index.candidates.search` gives them.

        Without `margin` every question visits the nearest `nprobe` lists. With it, a question visits as many as it
        needs: the nearest few, and then each list whose centroid scores no more than `margin` (for a question of length
        1) below the best `at` found in them, up to `MAX_TIMES` times `nprobe`, which is then an average. A list of
        which no row lives does not count as visited.

        `hits` says how many of the k are wanted after exact re-scoring, None: all. The scores of loose rows are exact
        already, so that no more than these of them (or `at`) are among the k.
        """
        loose = k if hits is None else min(k, max(hits, at))
        if margin is not None and len(questions_QD):
            return self._search_within(questions_QD, k, nprobe, margin, at, loose)
        chosen = self.lists and len(questions_QD) and (len(self.shards) > 1 or self._empty_L.any())
        lists = self._nearest(questions_QD, nprobe) if chosen else None
        return self._visit(questions_QD, k, nprobe, lists, loose)

    def _search_within(
        self, questions_QD: Scores, k: int, nprobe: int, margin: float, at: int, loose: int
    ) -> tuple[Scores, Ids]:
        """Search the first lists, and then those that may hold equally near rows."""
        near = self._nearest(questions_QD, NEAR_TIMES * nprobe, spare=False)
        first, width = self.first_lists(at), max(k, at)
        found = self._visit(questions_QD, width, first, _slice(near, 0, first), max(loose, at))
        least_Q = found[0][:, at - 1] - margin * np.linalg.norm(questions_QD, axis=1)
        short = np.flatnonzero(near[0][:, -1] >= least_Q)
        if len(short) and near[0].shape[1] < self.lists:
            near = _replaced(near, short, self._nearest(questions_QD[short], MAX_TIMES * nprobe, spare=False))
        visited = int((near[0] >= least_Q[:, None]).sum(axis=1).max())
        if visited <= first:
            return found[0][:, :k], found[1][:, :k]
        scores_QP, numbers_QP = _slice(near, first, visited)
        further = scores_QP, np.where(scores_QP >= least_Q[:, None], numbers_QP, MISSING)
        more = self._visit(questions_QD, k, visited - first, further)
        return first_by_score(np.concatenate([found[0], more[0]], 1), np.concatenate([found[1], more[1]], 1), k)

    def first_lists(self, at: int) -> int:
        """Return how many lists every question visits before it is decided which others it needs.

        They hold enough rows to estimate how near the best `at` are.
        """
        holding = math.ceil(FIRST_ROWS_TIMES * at * self.lists / max(1, self.rows))
        return min(self.lists, max(holding, round(math.sqrt(self.lists) / 4)))

    def scores_below(self, questions_QD: Scores, at: int) -> Scores:
        """Return how far each list is below the best `at` that are found first (Q, L), for a question of length 1.

        A question visits the lists for which this is `margin` or less. It is -inf for those that it visits first, and
        for all if fewer than `at` are found in them; inf for empty lists.
        """
        scores_QL, _ = near = self._nearest(questions_QD, self.lists, spare=False)
        first = self.first_lists(at)
        found = self._visit(questions_QD, at, first, _slice(near, 0, first), loose=at)
        below_QL = np.full(scores_QL.shape, np.inf, np.float32)
        there_QL, reached_Q1 = near[1] != MISSING, found[0][:, at - 1, None]
        np.subtract(reached_Q1, scores_QL, out=below_QL, where=there_QL)
        below_QL /= np.linalg.norm(questions_QD, axis=1)[:, None]
        below_QL[:, :first] = -np.inf
        return below_QL

    def _nearest(self, questions_QD: Scores, nprobe: int, *, spare: bool = True) -> Lists:
        return nearest_lists(self.shards[0], questions_QD, nprobe, self._empty_L, spare=spare)

    def _visit(
        self, questions_QD: Scores, k: int, nprobe: int, lists: Lists | None, loose: int = 0
    ) -> tuple[Scores, Ids]:
        """Return the k best live rows of all shards, in the nearest lists or in those given, and of `loose` rows."""
        found = []
        for shard, dead_share in zip(self.shards, self._dead_shares, strict=True):
            spare = math.ceil(k * SPARE_FACTOR / (1.0 - min(dead_share, 0.5))) + SPARE_CANDIDATES if dead_share else k
            found.append(self._search_live(shard, questions_QD, (k, spare, nprobe), lists))
        if loose and self.loose is not None:
            found.append(self.loose.search(questions_QD, loose))
        return found[0] if len(found) == 1 else merge_topk(found, k, by_id=False)

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
        """Return which lists have no row that lives, in any shard."""
        if self._live is None:
            return np.equal(self._sizes_L, 0)
        living_L = np.zeros(self.lists, np.int64)
        for shard in self.shards:
            lists_N = np.repeat(np.arange(self.lists), list_sizes(shard))
            living_L += np.bincount(lists_N[self._live.contain(stored_ids(shard))], minlength=self.lists)
        return np.equal(living_L, 0)

    @cached_property
    def _squares(self) -> float:
        """Return the sum of the squared sizes of all lists."""
        return float(np.square(self._sizes_L, dtype=np.float64).sum())


def _slice(lists: Lists, first: int, last: int) -> Lists:
    return lists[0][:, first:last], lists[1][:, first:last]


def _replaced(lists: Lists, rows: npt.NDArray[np.int64], others: Lists) -> Lists:
    """Return lists with those of some questions replaced by more; the other questions have none in their place."""
    scores_QP = np.full((len(lists[0]), others[0].shape[1]), -np.inf, np.float32)
    numbers_QP = np.full(scores_QP.shape, MISSING, np.int64)
    width = lists[0].shape[1]
    scores_QP[:, :width], numbers_QP[:, :width] = lists
    scores_QP[rows], numbers_QP[rows] = others
    return scores_QP, numbers_QP


def _visited_without_lists(shard: faiss.Index, ef: int) -> int:
    graph = searched(shard)
    if isinstance(graph, faiss.IndexHNSW):
        return min(int(shard.ntotal), ef * int(graph.hnsw.nb_neighbors(0)))
    return int(shard.ntotal)
