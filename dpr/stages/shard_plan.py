"""Decide which shards of the index stay, and which rows are merged into new ones. Pure.

A night's new rows become a small shard of their own. Sizes fall into tiers, each four times the one below; once a tier
holds four shards, they are merged into one, which belongs to a higher tier. So a row is written into a new file at most
once a tier, however many nights there are. Where the recipe wants several shards, large ones are left as they are:
those with at least half of the rows that each would have if all were cut evenly. So nights do not join again what
several processes share, until most of its rows are dead. A shard is also rewritten once too many of its rows are dead;
until then search skips them.
"""

from collections.abc import Sequence
from dataclasses import dataclass

TIER_FACTOR = 4
"""The number of shards of one tier that are merged, and the ratio of sizes between neighbouring tiers."""
MIN_TIER_ROWS = 4_096
"""Shards with fewer live rows are all of the lowest tier."""
MAX_DEAD_SHARE = 0.2
"""A shard with a larger share of dead rows is rewritten."""


@dataclass(frozen=True)
class ShardSize:
    """Rows of a shard: all in its file, and those of them that live."""

    rows: int
    live_rows: int

    @property
    def is_spoilt(self) -> bool:
        """Whether too many of its rows are dead."""
        return self.rows - self.live_rows > MAX_DEAD_SHARE * self.rows


@dataclass(frozen=True)
class Group:
    """The contents of one shard of the new index: the rows of old shards, by their places, and perhaps the new rows."""

    shards: tuple[int, ...]
    with_new_rows: bool
    live_rows: int

    @property
    def tier(self) -> int:
        """The tier of its size, from 0."""
        tier, bound = 0, MIN_TIER_ROWS
        while self.live_rows >= bound:
            tier, bound = tier + 1, bound * TIER_FACTOR
        return tier


def plan_tiers(shards: Sequence[ShardSize], new_rows: int, wanted: int = 1) -> tuple[list[int], list[Group]]:
    """Return the places of the shards that stay, and the groups that are each merged into a new shard.

    `wanted`: the number of large shards that the recipe wants.

    A shard whose rows are all dead is in neither. A merged shard counts in the tier of its own
    size, so merging may go on there.
    """
    groups = [Group((place,), False, shard.live_rows) for place, shard in enumerate(shards) if shard.live_rows]
    if new_rows:
        groups.append(Group((), True, new_rows))
    rows = sum(group.live_rows for group in groups)
    large_rows = rows / (2 * wanted) if wanted > 1 else rows + 1
    while full := _full_tier([group for group in groups if group.live_rows < large_rows]):
        rest = [group for group in groups if group not in full]
        groups = [*rest, _joined(full)]
    stay = [group for group in groups if _stays(shards, group)]
    return sorted(group.shards[0] for group in stay), [group for group in groups if group not in stay]


def _full_tier(groups: Sequence[Group]) -> list[Group]:
    """The groups of the lowest tier that is full; none if no tier is."""
    for tier in sorted({group.tier for group in groups}):
        members = [group for group in groups if group.tier == tier]
        if len(members) >= TIER_FACTOR:
            return members
    return []


def _joined(groups: Sequence[Group]) -> Group:
    places = sorted(place for group in groups for place in group.shards)
    live_rows = sum(group.live_rows for group in groups)
    return Group(tuple(places), any(group.with_new_rows for group in groups), live_rows)


def _stays(shards: Sequence[ShardSize], group: Group) -> bool:
    return len(group.shards) == 1 and not group.with_new_rows and not shards[group.shards[0]].is_spoilt
