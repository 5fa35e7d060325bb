"""The rows that match filters: evaluated once for a snapshot; the most recently used are kept.

The vectors of few rows are gathered and compared. More rows are found through the index, which skips all others. An
index without inverted lists cannot do so, or saves little by it: there the rows are compared where they lie, however
many they are.

Shapes: N rows, D dimensions.
"""

import threading
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial

import numpy as np

from dpr.formats.stored_vectors import FLOAT16_BYTES
from dpr.formats.vector_layout import ROW_GROUP_ROWS
from dpr.index.filtered_index import FilteredIndex
from dpr.index.loose_index import LooseIndex
from dpr.index.row_bits import RowBits
from dpr.index.serving_index import ServingIndex
from dpr.index.truth import Ids
from dpr.search.filter_values import matching_rows, operands_of
from dpr.search.filters import Filter
from dpr.search.segment_set import SegmentSet

MAX_FILTERS = 16
"""Number of filters whose rows are kept, for one snapshot: one bit a row, 16 kB a segment, and the vectors of few
rows."""
FEW_BYTES = 8 * 2**20
"""Bytes of vectors that are compared in a third of a millisecond, less than a search of most indexes takes: 10,922 of
384 dimensions."""


@dataclass(frozen=True)
class FilteredRows:
    """The rows that match a filter, which all live."""

    bits: RowBits
    where: Filter
    few: LooseIndex | None = None
    """The rows with their vectors, if they are few."""
    index: FilteredIndex | None = None
    """The index that finds them, if they are many and it has inverted lists."""

    def __len__(self) -> int:
        return len(self.bits)

    def id_blocks(self) -> Iterator[Ids]:
        """Yield their index ids (n,), ascending: many at once, in however many segments they lie."""
        waiting: list[Ids] = []
        for ids_N in self.bits.ids():
            waiting.append(ids_N)
            if sum(map(len, waiting)) >= ROW_GROUP_ROWS:
                yield np.concatenate(waiting)
                waiting = []
        if waiting:
            yield np.concatenate(waiting)


class RowFilters:
    """The most recently used filters, over one snapshot."""

    def __init__(self, segments: SegmentSet, index: ServingIndex | None) -> None:
        """`index`: None: vectors are searched elsewhere, and only the rows themselves are needed."""
        self._segments, self._index = segments, index
        self._found: OrderedDict[Filter, FilteredRows] = OrderedDict()
        self._lock, self._evaluating = threading.Lock(), threading.Lock()

    def rows(self, where: Filter) -> FilteredRows:
        """Return the rows that match.

        Raises RecipeError if the snapshot lacks a column of the filter, or has it with another type.
        """
        if (known := self._known(where)) is not None:
            return known
        with self._evaluating:  # meanwhile, other threads find the known filters
            if (known := self._known(where)) is not None:
                return known
            found = self._evaluate(where)
        with self._lock:
            self._found[where] = found
            while len(self._found) > MAX_FILTERS:
                self._found.popitem(last=False)
        return found

    def _known(self, where: Filter) -> FilteredRows | None:
        with self._lock:
            if (found := self._found.get(where)) is not None:
                self._found.move_to_end(where)
            return found

    def _evaluate(self, where: Filter) -> FilteredRows:
        extra = self._segments.extra
        operands = operands_of(where, extra.types)
        masks = {
            number: live_N & matching_rows(where.condition, operands, partial(extra.column, number), len(live_N))
            for number, live_N in self._segments.live_masks()
        }
        found = FilteredRows(RowBits(masks), where)
        if self._index is None:
            return found
        if FLOAT16_BYTES * self._segments.dim * len(found) <= FEW_BYTES:
            ids_N = np.concatenate([np.empty(0, np.int64), *found.bits.ids()])
            return replace(found, few=LooseIndex(ids_N, self._segments.vectors(ids_N))) if len(ids_N) else found
        return replace(found, index=FilteredIndex(self._index, found.bits)) if self._index.lists else found
