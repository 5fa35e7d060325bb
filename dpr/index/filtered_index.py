"""An index with inverted lists, searched for some of its rows only.

FAISS skips the others while it reads the lists. A list that holds none of the rows does not count as visited. Where the
lists also hold other rows, the best chosen rows lie farther away than the best of all, so more lists are visited: twice
as many if a quarter of the rows in these lists is chosen.

Shapes: Q questions, K hits, L lists.
"""

import math

import numpy as np

from dpr.index.candidates import nearest_lists, search
from dpr.index.contents import iter_lists
from dpr.index.row_bits import RowBits
from dpr.index.serving_index import ServingIndex
from dpr.index.truth import Ids, Scores, merge_topk


class FilteredIndex:
    """Shards and loose rows of an index, as if they held only the chosen rows."""

    def __init__(self, index: ServingIndex, rows: RowBits) -> None:
        """Count the rows, which all live, in the lists of all shards; `index` is of a kind with lists."""
        self._index, self._rows = index, rows
        all_L, chosen_L = np.zeros(index.lists, np.int64), np.zeros(index.lists, np.int64)
        for shard in index.shards:
            for number, ids_N in iter_lists(shard):
                all_L[number] += len(ids_N)
                chosen_L[number] += np.count_nonzero(rows.contain(ids_N))
        self._empty_L = np.equal(chosen_L, 0)
        self._times = math.sqrt(all_L[~self._empty_L].sum() / max(1, chosen_L.sum()))

    @property
    def lists(self) -> int:
        """Return how many lists hold chosen rows."""
        return int(np.count_nonzero(~self._empty_L))

    def search(self, questions_QD: Scores, k: int, nprobe: int) -> tuple[Scores, Ids]:
        """Return the k best of the chosen rows by the index's own scores, as `dpr.index.candidates.search` gives them.

        `nprobe`: the lists that a question visits in a search for all rows.
        """
        visited = min(self.lists, math.ceil(nprobe * self._times))
        found: list[tuple[Scores, Ids]] = []
        if visited:
            lists = nearest_lists(self._index.shards[0], questions_QD, visited, self._empty_L)
            found += [search(shard, questions_QD, k, visited, lists, self._rows) for shard in self._index.shards]
        if self._index.loose is not None:
            found.append(self._index.loose.search(questions_QD, k, self._rows))
        return found[0] if len(found) == 1 else merge_topk(found, k, by_id=False)
