"""Find which rows the shards of an index hold, which of these live, and which live rows no shard holds yet.

The driver asks these questions, so its memory must not grow with the corpus. It holds the few rows that are dead or
left out, and makes the mask of a segment, a byte for each row, whenever it needs one.

Shapes: N rows of a segment.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np

from dpr.formats.deletions import read_deletions, read_row_set
from dpr.formats.manifest import SegmentEntry, ShardEntry
from dpr.index.live_rows import Mask
from dpr.stages.shard_plan import Group, ShardSize, plan_tiers
from dpr.stages.train import IndexContext
from dpr.store import Store

ShardRows = Mapping[int, Mask]
"""Segment number → which of its rows (N,) a shard holds."""


class Masks(Mapping[int, Mask]):
    """Masks of segments, each made when it is asked for."""

    def __init__(self, numbers: Iterable[int], make: Callable[[int], Mask]) -> None:
        self._numbers, self._make = dict.fromkeys(numbers), make

    def __getitem__(self, number: int) -> Mask:
        if number not in self._numbers:
            raise KeyError(number)
        return self._make(number)

    def __contains__(self, number: object) -> bool:
        return number in self._numbers

    def __iter__(self) -> Iterator[int]:
        return iter(self._numbers)

    def __len__(self) -> int:
        return len(self._numbers)


@dataclass(frozen=True)
class ShardsToBe:
    """The shards of the new index."""

    kept: list[ShardEntry]
    """Those that stay, with their live rows as of now."""
    new: list[ShardRows]
    """The rows of each that is to be written."""


@dataclass(frozen=True)
class RowsNow:
    """The places of live rows before the shards of this night are planned."""

    old: Sequence[ShardEntry]
    living: Sequence[ShardRows]
    """The live rows of each old shard."""
    missing: ShardRows
    """Those that no old shard holds."""

    @property
    def any_in_shards(self) -> bool:
        """Return whether any old shard has a live row."""
        return any(count(rows) for rows in self.living)


def rows_now(store: Store, context: IndexContext, old: Sequence[ShardEntry]) -> RowsNow:
    """Find where the live rows lie."""
    deletions = read_deletions(store, context.deletions)
    entries = {entry.number: entry for entry in context.segments}
    lives = Masks(entries, lambda number: deletions.live_mask(entries[number]))
    living = [_living(store, shard, lives) for shard in old]

    def missing(number: int) -> Mask:
        mask = lives[number]
        for rows in living:
            if number in rows:
                mask &= ~rows[number]
        return mask

    return RowsNow(old, living, Masks(entries, missing))


def plan_shards(context: IndexContext, now: RowsNow, loose: ShardRows) -> ShardsToBe:
    """Decide which shards stay and which rows go into new ones. Every live row is in exactly one, or loose. Pure."""
    missing = Masks(now.missing, lambda number: now.missing[number] & ~loose[number])
    if not now.old:
        runs = split_evenly(context.segments, context.config.shards)
        new = [_that_have_rows((e.number for e in run), missing.__getitem__) for run in runs]
        return ShardsToBe([], [rows for rows in new if rows])
    sizes = [ShardSize(shard.rows, count(rows)) for shard, rows in zip(now.old, now.living, strict=True)]
    stay, groups = plan_tiers(sizes, count(missing), context.config.shards)
    return ShardsToBe(
        [now.old[place].model_copy(update={"live_rows": sizes[place].live_rows}) for place in stay],
        [_group_rows(group, now.living, missing) for group in groups],
    )


def split_evenly(segments: Sequence[SegmentEntry], max_runs: int) -> list[tuple[SegmentEntry, ...]]:
    """Cut the segments that have live rows into at most `max_runs` contiguous runs, as even as segments allow. Pure.

    If all live rows are cut evenly, a segment belongs to the run that contains the middle of its live rows, so no run
    exceeds its share by more than one segment.
    """
    living = [entry for entry in segments if entry.live_rows]
    live = np.array([entry.live_rows for entry in living], np.int64)
    twice_middles = 2 * np.cumsum(live) - live
    places = twice_middles * max_runs // (2 * live.sum()) if len(live) else live
    return [tuple(e for e, p in zip(living, places, strict=True) if p == place) for place in np.unique(places)]


def _living(store: Store, shard: ShardEntry, lives: ShardRows) -> ShardRows:
    """Return the live rows that a shard holds; segments that are gone hold none."""
    left_out = read_row_set(store, shard.left_out)

    def held(number: int) -> Mask:
        mask = lives[number]
        mask[left_out.rows(number)] = False
        return mask

    return Masks((number for number in shard.segments if number in lives), held)


def _group_rows(group: Group, living: Sequence[ShardRows], missing: ShardRows) -> ShardRows:
    sources = [living[place] for place in group.shards] + ([missing] if group.with_new_rows else [])

    def joined(number: int) -> Mask:
        rows: Mask = np.logical_or.reduce([source[number] for source in sources if number in source])
        return rows

    return _that_have_rows(chain.from_iterable(sources), joined)


def _that_have_rows(numbers: Iterable[int], make: Callable[[int], Mask]) -> ShardRows:
    """Return the masks of those segments that have a row in theirs."""
    return Masks((number for number in dict.fromkeys(numbers) if make(number).any()), make)


def count(rows: ShardRows) -> int:
    """Return how many rows there are in all segments."""
    return int(sum(mask.sum() for mask in rows.values()))
