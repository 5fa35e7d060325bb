"""Which shards of an index stay: invariants over any sizes, and what thirty nights and more of them write."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dpr.stages.shard_plan import MAX_DEAD_SHARE, TIER_FACTOR, Group, ShardSize, plan_tiers

sizes = st.tuples(st.integers(1, 10**7), st.floats(0.0, 1.0)).map(
    lambda pair: ShardSize(pair[0], int(pair[0] * pair[1]))
)


@given(shards=st.lists(sizes, max_size=40), new_rows=st.integers(0, 10**6))
def test_every_live_row_is_in_one_shard(shards: list[ShardSize], new_rows: int) -> None:
    kept, groups = plan_tiers(shards, new_rows)
    placed = Counter([*kept, *(place for group in groups for place in group.shards)])
    assert placed == Counter(place for place, shard in enumerate(shards) if shard.live_rows)
    assert sum(group.with_new_rows for group in groups) == bool(new_rows)
    live = [shards[place].live_rows for place in kept] + [group.live_rows for group in groups]
    assert sum(live) == sum(shard.live_rows for shard in shards) + new_rows
    assert not any(shards[place].rows - shards[place].live_rows > MAX_DEAD_SHARE * shards[place].rows for place in kept)


@given(shards=st.lists(sizes, max_size=40), new_rows=st.integers(0, 10**6))
def test_no_tier_is_full_afterwards(shards: list[ShardSize], new_rows: int) -> None:
    kept, groups = plan_tiers(shards, new_rows)
    live = [shards[place].live_rows for place in kept] + [group.live_rows for group in groups]
    assert max(Counter(Group((), False, rows).tier for rows in live).values(), default=0) < TIER_FACTOR


def test_a_night_without_changes_writes_nothing() -> None:
    assert plan_tiers([ShardSize(1_000_000, 990_000), ShardSize(10_000, 10_000)], 0) == ([0, 1], [])


@pytest.mark.parametrize("share", [0.001, 0.01, 0.05])
def test_hundreds_of_nights_write_each_row_few_times_and_leave_few_shards(share: float) -> None:
    first, nights = 1_000_000, 400
    night_rows = int(first * share)
    shards, written, most = [ShardSize(first, first)], 0, 0
    for _ in range(nights):
        # as many rows die as come, everywhere alike
        total = sum(shard.live_rows for shard in shards)
        shards = [ShardSize(s.rows, s.live_rows - night_rows * s.live_rows // total) for s in shards]
        kept, groups = plan_tiers(shards, night_rows)
        written += sum(group.live_rows for group in groups)
        shards = [shards[place] for place in kept] + [ShardSize(g.live_rows, g.live_rows) for g in groups]
        most = max(most, len(shards))
    # a row that stays for 1 / share nights is written once a tier, and a large shard once a fifth of it is dead
    assert written / nights <= 8 * night_rows
    assert most <= 3 * 7


@pytest.mark.parametrize("wanted", [2, 4, 7])
def test_large_shards_are_not_joined_where_several_are_wanted(wanted: int) -> None:
    first, night_rows = 1_000_000, 10_000
    shards = [ShardSize(first // wanted, first // wanted)] * wanted
    for _ in range(25):
        total = sum(shard.live_rows for shard in shards)
        shards = [ShardSize(s.rows, s.live_rows - night_rows * s.live_rows // total) for s in shards]
        kept, groups = plan_tiers(shards, night_rows, wanted)
        shards = [shards[place] for place in kept] + [ShardSize(g.live_rows, g.live_rows) for g in groups]
        large = [shard for shard in shards if shard.live_rows >= first / (4 * wanted)]
        assert len(large) >= wanted
        assert len(shards) <= 3 * 7 + 2 * wanted
