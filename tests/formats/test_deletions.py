"""The deletion set of a snapshot: one object with the dead rows of all segments, as the snapshot counts them."""

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dpr.errors import IntegrityError
from dpr.formats.deletions import DeletionSet, RowSet, dead_digest, read_deletions, read_row_set, with_dead
from dpr.formats.manifest import SegmentEntry
from dpr.store import LocalStore
from tests.formats.samples import DAMAGE, some_ref

ROWS = 60

dead_rows = st.dictionaries(
    st.sampled_from([0, 1, 7, 2**31 - 1]), st.sets(st.integers(0, ROWS - 1), max_size=ROWS), max_size=4
)


def entry(number: int, dead: set[int] | None = None) -> SegmentEntry:
    segment = SegmentEntry(number=number, segment_id=f"s{number}", rows=ROWS, object=some_ref(f"segments/e/s{number}"))
    return with_dead(segment, np.array(sorted(dead or ()), np.uint32))


def deletion_set(dead: Mapping[int, set[int]]) -> DeletionSet:
    return DeletionSet({number: np.array(sorted(rows), np.uint32) for number, rows in dead.items()})


@settings(deadline=None, max_examples=50)
@given(dead_rows)
def test_what_is_stored_is_read_back(tmp_path_factory: pytest.TempPathFactory, dead: dict[int, set[int]]) -> None:
    store = LocalStore(tmp_path_factory.mktemp("store"))
    ref = deletion_set(dead).put(store)
    assert [info.name for info in store.list()] == ([ref.name] if ref else [])  # one object a snapshot
    read = read_deletions(store, ref)
    for number in (0, 1, 7, 9, 2**31 - 1):
        rows = dead.get(number, set())
        assert read.dead_rows(entry(number, rows)).tolist() == sorted(rows)
        assert read.live_rows(entry(number, rows)).tolist() == [row for row in range(ROWS) if row not in rows]
        assert read.live_mask(entry(number, rows)).tolist() == [row not in rows for row in range(ROWS)]


@settings(deadline=None, max_examples=30)
@given(dead_rows)
def test_any_set_of_rows_is_stored_in_the_same_form(
    tmp_path_factory: pytest.TempPathFactory, rows: dict[int, set[int]]
) -> None:
    """What an index shard leaves out, for one; it lies beside the shard."""
    store = LocalStore(tmp_path_factory.mktemp("store"))
    ref = RowSet({number: np.array(sorted(some), np.uint32) for number, some in rows.items()}).put(store, "indexes/i.x")
    assert (ref is not None) == any(rows.values())
    assert ref is None or ref.name.startswith("indexes/i.x-")
    read = read_row_set(store, ref)
    assert {number: set(read.rows(number).tolist()) for number in (*rows, 9)} == rows | {9: set()}


@settings(deadline=None)
@given(st.sets(st.integers(0, ROWS - 1)), st.sets(st.integers(0, ROWS - 1)))
def test_dead_rows_that_are_not_those_of_the_entry_are_refused(stored: set[int], counted: set[int]) -> None:
    dead, segment = deletion_set({3: stored}), entry(3, counted)
    if stored == counted:
        assert dead.dead_rows(segment).tolist() == sorted(counted)
        return
    for read in (dead.dead_rows, dead.live_rows, dead.live_mask):
        with pytest.raises(IntegrityError, match=f"names {len(stored)} dead rows of segment s3, and they are not"):
            read(segment)


def test_plain_pyarrow_reads_it(store: LocalStore) -> None:
    ref = deletion_set({4: {9, 2}, 1: {0}}).put(store)
    assert ref is not None
    assert ref.name.startswith("deletions/")
    table = pq.read_table(Path(store.url, ref.name))
    assert table.to_pylist() == [{"segment": 1, "row": 0}, {"segment": 4, "row": 2}, {"segment": 4, "row": 9}]


def test_where_all_rows_live_nothing_is_stored(store: LocalStore) -> None:
    assert deletion_set({4: set()}).put(store) is None
    assert list(store.list()) == []
    assert read_deletions(store, None).live_rows(entry(4)).tolist() == list(range(ROWS))


def test_the_same_rows_are_the_same_object(store: LocalStore) -> None:
    one, other = deletion_set({1: {2}, 3: {4}}), deletion_set({3: {4}, 1: {2}, 5: set()})
    assert one.put(store) == other.put(store) != deletion_set({1: {2}, 3: {5}}).put(store)


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_set_is_refused(store: LocalStore, damage: Callable[[Path], None]) -> None:
    ref = deletion_set({1: {2}}).put(store)
    assert ref is not None
    damage(Path(store.url, ref.name))
    for read in (read_deletions, read_row_set):
        with pytest.raises(IntegrityError, match="its record says"):
            read(store, ref)


def test_digests_differ_with_the_rows_and_none_is_empty() -> None:
    digests = {dead_digest(np.array(rows, np.uint32)) for rows in ([], [0], [1], [0, 1], [2**32 - 1])}
    assert len(digests) == 5
    assert "" in digests
