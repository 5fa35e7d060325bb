"""Vectors of a segment, read where they lie: the same as pyarrow reads, from a mapped file and from ranges.

Shapes: N rows, D dimensions.
"""

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dpr.errors import IntegrityError, MissingObjectError
from dpr.formats.manifest import SegmentEntry
from dpr.formats.objects import put_object
from dpr.formats.stored_vectors import vectors_of
from dpr.formats.vector_layout import ROW_GROUP_ROWS
from dpr.search import vectors as module
from dpr.search.vectors import SegmentVectors
from dpr.store import LocalStore, Store
from tests.formats.samples import DAMAGE, RemoteStore, flip_a_bit, put_segment, random_vectors

SHAPES = [(1, 1), (1, 768), (40, 7), (ROW_GROUP_ROWS, 2), (ROW_GROUP_ROWS + 1, 5), (2 * ROW_GROUP_ROWS + 9, 12)]


@dataclass(frozen=True, repr=False)
class Stored:
    """A stored segment, and its vectors as pyarrow reads them."""

    folder: Path
    entry: SegmentEntry
    vectors_ND: npt.NDArray[np.float16]


@pytest.fixture(scope="module")
def segments(tmp_path_factory: pytest.TempPathFactory) -> list[Stored]:
    folder = tmp_path_factory.mktemp("vectors")
    store, made = LocalStore(folder / "store"), []
    for number, (rows, dim) in enumerate(SHAPES):
        entry = put_segment(store, folder, number, random_vectors(rows, dim, seed=number))
        table = pq.read_table(folder / "store" / entry.object.name, columns=["embedding"])
        made.append(Stored(folder / "store", entry, vectors_of(table)))
    return made


@pytest.fixture(params=[LocalStore, RemoteStore])
def kind(request: pytest.FixtureRequest) -> Callable[[Path], Store]:
    made: Callable[[Path], Store] = request.param
    return made


@settings(max_examples=40, deadline=None)
@given(data=st.data())
@pytest.mark.parametrize("opened_as", [LocalStore, RemoteStore])
def test_any_rows_in_any_order_are_those_that_pyarrow_reads(
    segments: list[Stored], opened_as: Callable[[Path], Store], data: st.DataObject
) -> None:
    stored = data.draw(st.sampled_from(segments))
    count = len(stored.vectors_ND)
    edges = [row for row in (0, ROW_GROUP_ROWS - 1, ROW_GROUP_ROWS, count - 1) if row < count]
    rows_N = np.array(data.draw(st.lists(st.one_of(st.sampled_from(edges), st.integers(0, count - 1)))), np.int64)
    vectors = SegmentVectors.open(opened_as(stored.folder), stored.entry.object)
    found_ND = vectors.rows(rows_N)
    assert found_ND.dtype == np.float16
    np.testing.assert_array_equal(found_ND, stored.vectors_ND[rows_N])


@pytest.mark.parametrize("place", range(len(SHAPES)))
def test_whole_row_groups_are_those_that_pyarrow_reads(
    segments: list[Stored], kind: Callable[[Path], Store], place: int
) -> None:
    stored = segments[place]
    vectors = SegmentVectors.open(kind(stored.folder), stored.entry.object)
    assert (len(vectors), vectors.dim) == stored.vectors_ND.shape
    np.testing.assert_array_equal(vectors.all(), stored.vectors_ND)
    blocks = list(vectors.blocks())
    assert [first for first, _ in blocks] == list(range(0, len(vectors), ROW_GROUP_ROWS))
    for first, block_ND in blocks:
        np.testing.assert_array_equal(block_ND, stored.vectors_ND[first : first + ROW_GROUP_ROWS])


def test_a_segment_without_rows_has_no_vectors(
    tmp_path: Path, store: LocalStore, kind: Callable[[Path], Store]
) -> None:
    entry = put_segment(store, tmp_path, 0, np.empty((0, 768), np.float16))
    vectors = SegmentVectors.open(kind(Path(store.url)), entry.object)
    assert vectors.all().shape == vectors.rows(np.empty(0, np.int64)).shape == (0, 768)
    assert list(vectors.blocks()) == []


def test_few_rows_of_a_remote_segment_are_few_requests_of_few_bytes(
    segments: list[Stored], cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MAX_GAP_BYTES", 1 << 16)
    stored = segments[-1]
    store = RemoteStore(stored.folder)
    vectors = SegmentVectors.open(store, stored.entry.object)
    opening = store.reads[:]
    assert len(opening) == 2  # the footer, and the head of a page
    assert sum(size for _, size in opening) < stored.entry.object.size_bytes / 4
    store.reads.clear()

    gap = (1 << 16) // vectors.row_bytes
    near = np.array([5, 0, 3, 3 + gap, 5])
    np.testing.assert_array_equal(vectors.rows(near), stored.vectors_ND[near])
    assert store.reads == [("get_range", (3 + gap + 1) * vectors.row_bytes)]
    store.reads.clear()

    far = np.array([8000, 0, 8001, 2 * ROW_GROUP_ROWS])
    np.testing.assert_array_equal(vectors.rows(far), stored.vectors_ND[far])
    sizes = sorted(size for _, size in store.reads)
    assert sizes == [vectors.row_bytes, vectors.row_bytes, 2 * vectors.row_bytes]
    assert not (cache / "entries").exists()  # nothing is kept


def test_no_request_of_a_remote_segment_reads_more_than_a_window(
    segments: list[Stored], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "WINDOW_BYTES", 1 << 12)
    stored = segments[-1]
    store = RemoteStore(stored.folder)
    vectors = SegmentVectors.open(store, stored.entry.object)
    store.reads.clear()
    rows = np.arange(0, 1000, 3)
    np.testing.assert_array_equal(vectors.rows(rows), stored.vectors_ND[rows])
    assert len(store.reads) in (6, 7)  # 24,000 bytes
    assert max(size for _, size in store.reads) <= (1 << 12) + vectors.row_bytes


def test_rows_are_read_one_row_group_a_request(segments: list[Stored]) -> None:
    stored = segments[-1]
    store = RemoteStore(stored.folder)
    vectors = SegmentVectors.open(store, stored.entry.object)
    store.reads.clear()
    vectors.all()
    assert [size // vectors.row_bytes for _, size in store.reads] == [ROW_GROUP_ROWS, ROW_GROUP_ROWS, 9]


def test_a_remote_segment_that_is_wanted_whole_is_fetched_once(segments: list[Stored], cache: Path) -> None:
    stored = segments[-1]
    store = RemoteStore(stored.folder)
    for _ in range(2):
        vectors = SegmentVectors.open(store, stored.entry.object, verify=True)
        np.testing.assert_array_equal(vectors.all(), stored.vectors_ND)
    assert store.reads == [("fetch", stored.entry.object.size_bytes)]
    (copy,) = (cache / "entries").rglob("*.parquet")
    assert copy.stat().st_size == stored.entry.object.size_bytes  # and nothing is unpacked beside it
    assert [path for path in (cache / "entries").rglob("*") if path.is_file()] == [copy]


def test_nothing_of_a_local_segment_is_kept(segments: list[Stored], cache: Path) -> None:
    stored = segments[-1]
    for verify in (False, True):
        SegmentVectors.open(LocalStore(stored.folder), stored.entry.object, verify=verify).all()
    assert not (cache / "entries").exists()


@pytest.mark.usefixtures("cache")
def test_an_object_that_became_shorter_after_it_was_opened_is_named(store: LocalStore, tmp_path: Path) -> None:
    entry = put_segment(store, tmp_path, 0, random_vectors(40, 7, seed=0))
    there = SegmentVectors.open(RemoteStore(tmp_path / "store"), entry.object)
    path = tmp_path / "store" / entry.object.name
    path.chmod(0o644)
    os.truncate(path, 60)
    for read in (there.all, lambda: there.rows(np.arange(40))):
        with pytest.raises(
            IntegrityError, match=f"object {entry.object.name} ends before byte [\\d,]+, where its vectors"
        ):
            read()


@pytest.mark.usefixtures("cache")
@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_segment_is_refused(
    tmp_path: Path, store: LocalStore, kind: Callable[[Path], Store], damage: Callable[[Path], None]
) -> None:
    entry = put_segment(store, tmp_path, 0, random_vectors(50, 4))
    damage(Path(store.url, entry.object.name))
    with pytest.raises(IntegrityError, match="its record says"):
        SegmentVectors.open(kind(Path(store.url)), entry.object, verify=True)


@pytest.mark.parametrize("damage", [d for d in DAMAGE if d is not flip_a_bit])
def test_a_segment_of_another_size_is_refused_without_reading_it(
    tmp_path: Path, store: LocalStore, kind: Callable[[Path], Store], damage: Callable[[Path], None]
) -> None:
    entry = put_segment(store, tmp_path, 0, random_vectors(50, 4))
    damage(Path(store.url, entry.object.name))
    with pytest.raises(IntegrityError, match="bytes, its record says"):
        SegmentVectors.open(kind(Path(store.url)), entry.object)


def test_a_missing_segment_is_missing(store: LocalStore, tmp_path: Path, kind: Callable[[Path], Store]) -> None:
    entry = put_segment(store, tmp_path, 0, random_vectors(50, 4))
    store.delete(entry.object.name)
    with pytest.raises(MissingObjectError, match=entry.object.name):
        SegmentVectors.open(kind(Path(store.url)), entry.object)


def test_a_segment_that_another_tool_wrote_is_refused(
    tmp_path: Path, store: LocalStore, kind: Callable[[Path], Store]
) -> None:
    entry = put_segment(store, tmp_path, 0, random_vectors(5000, 16))
    path = tmp_path / "rewritten.parquet"
    pq.write_table(pq.read_table(Path(store.url, entry.object.name)), path, compression="none", data_page_size=8000)
    with pytest.raises(IntegrityError, match="keeps its vectors in another form"):
        SegmentVectors.open(kind(Path(store.url)), put_object(store, "segments/e/s0", path))
