"""Which rows the shards hold, against sets of rows; and the memory that it takes to find out."""

import tempfile
import tracemalloc
from pathlib import Path

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from dpr.formats.deletions import RowSet, with_dead
from dpr.formats.manifest import SegmentEntry, ShardEntry
from dpr.formats.records import ObjectRef
from dpr.recipe_index import IndexConfig
from dpr.stages.loose_rows import plan_loose
from dpr.stages.shard_rows import ShardRows, plan_shards, rows_now
from dpr.stages.train import IndexContext
from dpr.store import LocalStore

NOTHING = ObjectRef(name="none", size_bytes=0, sha256="0" * 64)
SEGMENTS, ROWS = 3, 6
Pairs = set[tuple[int, int]]


def entry(number: int, rows: int, dead: set[int]) -> SegmentEntry:
    made = SegmentEntry(number=number, segment_id=str(number), rows=rows, object=NOTHING, dead_rows=0, dead_digest="")
    return with_dead(made, np.array(sorted(dead), np.uint32))


def context_of(store: LocalStore, segments: list[SegmentEntry], dead: Pairs, shards: int = 1) -> IndexContext:
    config = IndexConfig(shards=shards)
    return IndexContext(store.url, "e", 4, config, tuple(segments), row_set(dead).put(store))


def row_set(pairs: Pairs) -> RowSet:
    numbers = {number for number, _ in pairs}
    return RowSet({n: np.array(sorted(row for number, row in pairs if number == n), np.uint32) for n in numbers})


def pairs_of(rows: ShardRows) -> Pairs:
    return {(number, row) for number, mask in rows.items() for row in np.flatnonzero(mask).tolist()}


def shard(store: LocalStore, place: int, held: Pairs, rows: int) -> ShardEntry:
    """Return a shard that holds these rows of the segments that it names."""
    numbers = sorted({number for number, _ in held})
    left_out = {(number, row) for number in numbers for row in range(rows)} - held
    return ShardEntry(
        rows=len(held),
        live_rows=len(held),
        segments=numbers,
        left_out=row_set(left_out).put(store, f"shard-{place}.left-out"),
        object=NOTHING,
    )


@st.composite
def nights(draw: st.DrawFn) -> tuple[Pairs, list[Pairs]]:
    """Draw the dead rows of segments, and the rows that each old shard holds, whether or not they still live."""
    all_rows = [(number, row) for number in range(SEGMENTS) for row in range(ROWS)]
    dead = draw(st.sets(st.sampled_from(all_rows)))
    holders = draw(st.lists(st.integers(-1, 3), min_size=len(all_rows), max_size=len(all_rows)))
    shards = [{pair for pair, holder in zip(all_rows, holders, strict=True) if holder == place} for place in range(4)]
    return dead, [held for held in shards if held]


@given(night=nights(), wanted=st.integers(1, 3))
def test_every_live_row_is_in_one_shard(night: tuple[Pairs, list[Pairs]], wanted: int) -> None:
    dead, shards = night
    with tempfile.TemporaryDirectory() as folder:
        store = LocalStore(Path(folder))
        segments = [entry(number, ROWS, {row for n, row in dead if n == number}) for number in range(SEGMENTS)]
        context = context_of(store, segments, dead, wanted)
        old = [shard(store, place, held, ROWS) for place, held in enumerate(shards)]
        now = rows_now(store, context, old)
        loose, _ = plan_loose(store, context, now, None, {})
        plan = plan_shards(context, now, loose)
    live = {(number, row) for number in range(SEGMENTS) for row in range(ROWS)} - dead
    assert [pairs_of(rows) for rows in now.living] == [held - dead for held in shards]
    assert pairs_of(now.missing) == live.difference(*shards)
    kept = [shards[old.index(stays.model_copy(update={"live_rows": stays.rows}))] - dead for stays in plan.kept]
    found = [pair for rows in [*kept, *map(pairs_of, plan.new)] for pair in rows]
    assert sorted(found) == sorted(live)
    assert all(mask.any() for rows in plan.new for mask in rows.values())


def test_memory_does_not_grow_with_the_segments(tmp_path: Path) -> None:
    store, rows, several = LocalStore(tmp_path), 200_000, 40
    dead = {(number, row) for number in range(several) for row in range(5)}
    segments = [entry(number, rows, set(range(5))) for number in range(several)]
    context = context_of(store, segments, dead)
    old = [shard(store, 0, {(0, row) for row in range(100)}, rows)]
    tracemalloc.start()
    try:
        now = rows_now(store, context, old)
        loose, _ = plan_loose(store, context, now, None, {})
        plan = plan_shards(context, now, loose)
        live = sum(int(mask.sum()) for new in plan.new for mask in new.values())
        _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert live + sum(stays.live_rows for stays in plan.kept) == several * (rows - 5)
    assert peak_bytes < several * rows / 2  # one mask of all rows would take twice as much
