"""Which rows the shards of an index hold, which of them live, and which live rows no shard holds yet.

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


def plan_shards(store: Store, context: IndexContext, old: Sequence[ShardEntry]) -> ShardsToBe:
    """Decide which shards stay and which rows go into new ones. Every live row is in exactly one."""
    deletions = read_deletions(store, context.deletions)
    lives = {entry.number: deletions.live_mask(entry) for entry in context.segments}
    living = [_living(store, shard, lives) for shard in old]
    missing = dict(lives)
    for rows in living:
        for number, mask in rows.items():
            missing[number] = missing[number] & ~mask
    new_rows = _count(missing)
    if not old:
        return ShardsToBe([], [_chosen(lives, run) for run in split_evenly(context.segments, context.config.shards)])
    sizes = [ShardSize(shard.rows, _count(rows)) for shard, rows in zip(old, living, strict=True)]
    kept, groups = plan_tiers(sizes, new_rows)
    return ShardsToBe(
        [old[place].model_copy(update={"live_rows": sizes[place].live_rows}) for place in kept],
        [_group_rows(group, living, missing) for group in groups],
    )


def split_evenly(segments: Sequence[SegmentEntry], max_runs: int) -> list[tuple[SegmentEntry, ...]]:
    """Cut the segments that have live rows into at most `max_runs` contiguous runs, as even as segments allow. Pure.

    A segment belongs to the run that the middle of its live rows falls into when all live rows are cut evenly, so no
    run exceeds its share by more than one segment.
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


def _chosen(lives: ShardRows, segments: Sequence[SegmentEntry]) -> ShardRows:
    return {entry.number: lives[entry.number] for entry in segments}


def _count(rows: ShardRows) -> int:
    return int(sum(mask.sum() for mask in rows.values()))
