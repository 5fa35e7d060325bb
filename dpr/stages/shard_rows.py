"""Find which rows the shards of an index hold, which of these live, and which live rows no shard holds yet.

Shapes: N rows of a segment.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from dpr.formats.deletions import read_deletions, read_row_set
from dpr.formats.manifest import SegmentEntry, ShardEntry
from dpr.stages.shard_plan import Group, ShardSize, plan_tiers
from dpr.stages.train import IndexContext
from dpr.store import Store

ShardRows = Mapping[int, npt.NDArray[np.bool_]]
"""Segment number → which of its rows (N,) a shard holds."""


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
    lives = {entry.number: deletions.live_mask(entry) for entry in context.segments}
    living = [_living(store, shard, lives) for shard in old]
    missing = dict(lives)
    for rows in living:
        for number, mask in rows.items():
            missing[number] = missing[number] & ~mask
    return RowsNow(old, living, missing)


def plan_shards(context: IndexContext, now: RowsNow, loose: ShardRows) -> ShardsToBe:
    """Decide which shards stay and which rows go into new ones. Every live row is in exactly one, or loose. Pure."""
    missing = {number: mask & ~loose[number] for number, mask in now.missing.items()}
    if not now.old:
        runs = split_evenly(context.segments, context.config.shards)
        new = [{e.number: missing[e.number] for e in run if missing[e.number].any()} for run in runs]
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
    held: dict[int, npt.NDArray[np.bool_]] = {}
    for number in shard.segments:
        if number in lives:
            mask = lives[number].copy()
            mask[left_out.rows(number)] = False
            held[number] = mask
    return held


def _group_rows(group: Group, living: Sequence[ShardRows], missing: ShardRows) -> ShardRows:
    sources = [living[place] for place in group.shards] + ([missing] if group.with_new_rows else [])
    rows: dict[int, npt.NDArray[np.bool_]] = {}
    for source in sources:
        for number, mask in source.items():
            rows[number] = rows[number] | mask if number in rows else mask
    return {number: mask for number, mask in rows.items() if mask.any()}


def count(rows: ShardRows) -> int:
    """Return how many rows there are in all segments."""
    return int(sum(mask.sum() for mask in rows.values()))
