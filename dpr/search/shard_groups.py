"""Dividing the index of a snapshot among several processes: which files each one searches, and which rows are its own.

Every live row of the snapshot is the own row of exactly one group, also where files of the index were merged again
or rows are loose. So the results of all groups together are those of the whole index.

Shapes: N rows of a segment.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from dpr.errors import IntegrityError
from dpr.formats.deletions import DeletionSet, RowSet, read_deletions, read_row_set
from dpr.formats.loose import read_loose
from dpr.formats.manifest import IndexEntry, SegmentEntry, ShardEntry, SnapshotBody
from dpr.index.live_rows import Mask
from dpr.index.truth import Ids
from dpr.store import Store


@dataclass(frozen=True)
class GroupPlace:
    """Which part of an index a process searches."""

    number: int
    """From 0."""
    groups: int

    def of(self, index: IndexEntry) -> IndexEntry:
        """Return its part of an index. Pure."""
        return divide(index, self.groups)[self.number]


def divide(index: IndexEntry, groups: int) -> list[IndexEntry]:
    """Divide the files of an index among groups, as evenly by bytes as they allow. Pure.

    The largest file goes first, each to the group that has least. The loose rows belong to the first group, which has
    the largest file. Groups beyond the number of files have none.
    """
    shared: list[list[ShardEntry]] = [[] for _ in range(groups)]
    for shard in sorted(index.shards, key=lambda shard: (-shard.object.size_bytes, shard.object.name)):
        min(shared, key=lambda group: sum(each.object.size_bytes for each in group)).append(shard)
    return [_part(index, shards, with_loose=number == 0) for number, shards in enumerate(shared)]


def _part(index: IndexEntry, shards: Sequence[ShardEntry], *, with_loose: bool) -> IndexEntry:
    loose_rows = index.loose_rows if with_loose else 0
    return index.model_copy(
        update={
            "shards": list(shards),
            "rows": sum(shard.live_rows for shard in shards) + loose_rows,
            "loose": index.loose if with_loose else None,
            "loose_rows": loose_rows,
        }
    )


class OwnRows:
    """The live rows of segments that belong to one group. All others count as dead there."""

    def __init__(self, deletions: DeletionSet, shards: Sequence[tuple[ShardEntry, RowSet]], loose: RowSet) -> None:
        """Take the shards of the group, each with the rows that it leaves out, and the loose rows of the group."""
        self._deletions, self._shards, self._loose = deletions, list(shards), loose

    @classmethod
    def read(cls, store: Store, body: SnapshotBody, part: IndexEntry) -> "OwnRows":
        """Read which rows belong to a part of the index.

        Raises IntegrityError for objects that do not belong together.
        """
        shards = [(shard, read_row_set(store, shard.left_out)) for shard in part.shards]
        loose = read_loose(store, part.loose, body.encoder.dim)
        numbers = np.unique(loose.segments_N).tolist()
        rows = RowSet({number: loose.rows_N[loose.segments_N == number] for number in numbers})
        own = cls(read_deletions(store, body.deletions), shards, rows)
        found = sum(int(own.live_mask(entry).sum()) for entry in body.segments)
        if found != part.rows:
            raise IntegrityError(
                f"a part of index {part.index_id} has {found} live rows, and the snapshot counts {part.rows}; "
                "roll back to a sound snapshot or run the recipe again"
            )
        return own

    def live_mask(self, entry: SegmentEntry) -> Mask:
        """Return which of the N rows of a segment are the group's own and live, as a mask (N,)."""
        own_N = np.zeros(entry.rows, np.bool_)
        own_N[self._loose.rows(entry.number)] = True
        for shard, left_out in self._shards:
            if entry.number in shard.segments:
                held_N = np.ones(entry.rows, np.bool_)
                held_N[left_out.rows(entry.number)] = False
                own_N |= held_N
        return own_N & self._deletions.live_mask(entry)

    def live_rows(self, entry: SegmentEntry) -> Ids:
        """Return their sorted row numbers."""
        return np.flatnonzero(self.live_mask(entry))
