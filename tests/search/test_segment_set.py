"""From ids of the index to vectors and texts, over several segments with dead rows.

Shapes: N rows, D dimensions, K hits.
"""

import gc
import shutil
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dpr.errors import IntegrityError
from dpr.formats import MISSING
from dpr.formats.deletions import DeletionSet, with_dead
from dpr.formats.manifest import SegmentEntry
from dpr.formats.records import ObjectRef
from dpr.formats.vector_layout import ROW_GROUP_ROWS
from dpr.index.row_ids import ROW_BITS
from dpr.search.opened import OpenObjects
from dpr.search.segment_set import SegmentSet
from dpr.store import LocalStore
from tests.formats.samples import RemoteStore, flip_a_bit, put_segment, random_vectors

ROWS = {0: 50, 3: ROW_GROUP_ROWS + 20, 70_000: 7}
"""Segment number → rows."""
DIM = 6
DEAD = {0: [0, 49], 3: [1, ROW_GROUP_ROWS - 1, ROW_GROUP_ROWS], 70_000: [*range(7)]}


@dataclass(frozen=True, repr=False)
class Stored:
    """Stored segments, and what is in them."""

    folder: Path
    entries: list[SegmentEntry]
    deletions: ObjectRef
    vectors: dict[int, npt.NDArray[np.float16]]

    def open(self, *, remote: bool = False, verify: bool = True) -> SegmentSet:
        store = RemoteStore(self.folder) if remote else LocalStore(self.folder)
        return SegmentSet.open(store, self.entries, self.deletions, verify=verify)


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> Stored:
    folder = tmp_path_factory.mktemp("segments")
    store = LocalStore(folder / "store")
    vectors = {number: random_vectors(rows, DIM, seed=number) for number, rows in ROWS.items()}
    dead = {number: np.array(rows, np.uint32) for number, rows in DEAD.items()}
    entries = [with_dead(put_segment(store, folder, number, vectors[number]), dead[number]) for number in ROWS]
    deletions = DeletionSet(dead).put(store)
    assert deletions is not None
    return Stored(folder / "store", entries, deletions, vectors)


def id_of(number: int, row: int) -> int:
    return (number << ROW_BITS) | row


def passage_of(number: int, row: int) -> tuple[str, str, str]:
    n = 1_000_000 * number + row  # as `put_segment` numbers them
    return f"id-{n}", f"title {n % 7}", f"text é {n}"


places = st.lists(
    st.sampled_from(sorted(ROWS)).flatmap(lambda number: st.tuples(st.just(number), st.integers(0, ROWS[number] - 1))),
    max_size=30,
)


@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(some=places)
@pytest.mark.parametrize(("remote", "mapped_bytes"), [(False, 10**9), (False, 0), (True, 0)])
def test_vectors_come_in_the_order_of_their_ids(
    monkeypatch: pytest.MonkeyPatch, stored: Stored, remote: bool, mapped_bytes: int, some: list[tuple[int, int]]
) -> None:
    monkeypatch.setattr("dpr.search.vectors.MAPPED_BYTES", mapped_bytes)
    ids_N = np.array([id_of(*place) for place in some], np.int64)
    expected_ND = np.array([stored.vectors[number][row] for number, row in some], np.float16).reshape(-1, DIM)
    np.testing.assert_array_equal(stored.open(remote=remote, verify=False).vectors(ids_N), expected_ND)


def test_vectors_for_many_questions_are_fetched_once(stored: Stored) -> None:
    """No later call fetches again, whatever vectors it reads, in whatever order and how often."""
    rng = np.random.default_rng(0)
    store = RemoteStore(stored.folder)
    segments = SegmentSet.open(store, stored.entries, stored.deletions, verify=False)
    entry = stored.entries[0]
    ids_QC = np.array([[id_of(entry.number, row) for row in rng.integers(0, entry.rows, 20)] for _ in range(50)])
    ids_QC[3, 5:] = MISSING
    store.reads.clear()
    fetch = segments.fetching(ids_QC)
    assert sum(size for _, size in store.reads) <= entry.object.size_bytes
    store.reads.clear()
    for ids_C in ids_QC:
        some_n = np.sort(ids_C[ids_C != MISSING])
        np.testing.assert_array_equal(fetch(some_n), stored.open().vectors(some_n))
    assert store.reads == []


def test_live_blocks_are_all_live_rows_once(stored: Stored) -> None:
    blocks = list(stored.open().live_blocks())
    found: dict[int, npt.NDArray[np.float16]] = {}
    for ids_n, vectors_nD in blocks:
        found |= dict(zip(ids_n.tolist(), vectors_nD, strict=True))
    expected = {
        id_of(number, row): stored.vectors[number][row]
        for number, rows in ROWS.items()
        for row in range(rows)
        if row not in DEAD[number]
    }
    assert sum(len(ids_n) for ids_n, _ in blocks) == len(found)
    assert found.keys() == expected.keys()
    for id_, vector_D in expected.items():
        np.testing.assert_array_equal(found[id_], vector_D)


def test_hits_are_ranked_and_shown_with_their_text(stored: Stored) -> None:
    some = [(3, ROW_GROUP_ROWS + 19), (0, 7), (3, 0)]
    ids_K = np.array([*(id_of(*place) for place in some), -1, -1])
    scores_K = np.array([3.0, 2.0, 1.0, -np.inf, -np.inf], np.float32)
    hits = stored.open().hits(scores_K, ids_K)
    assert [(hit.rank, hit.score) for hit in hits] == [(1, 3.0), (2, 2.0), (3, 1.0)]
    assert [(hit.id, hit.title, hit.text) for hit in hits] == [passage_of(*place) for place in some]


def unpacked(cache: Path) -> dict[str, int]:
    """Unpacked texts in the cache: name → when the file was made."""
    return {path.name: path.stat().st_mtime_ns for path in (cache / "entries").glob("texts/*")}


@pytest.fixture
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Texts are unpacked as soon as one is shown."""
    monkeypatch.setattr("dpr.search.passage_texts.READ_FIRST", 0)


@pytest.mark.parametrize("remote", [False, True])
def test_the_first_texts_of_a_segment_are_read_before_it_is_unpacked(
    stored: Stored, cache: Path, monkeypatch: pytest.MonkeyPatch, remote: bool
) -> None:
    monkeypatch.setattr("dpr.search.passage_texts.READ_FIRST", 2)
    segments, one = stored.open(remote=remote), np.ones(1, np.float32)
    for row in (5, ROW_GROUP_ROWS + 2, 7):
        assert unpacked(cache) == {}
        (hit,) = segments.hits(one, np.array([id_of(3, row)]))
        assert (hit.id, hit.title, hit.text) == passage_of(3, row)
    assert list(unpacked(cache)) == [f"{stored.entries[1].object.sha256}.arrow"]


def test_texts_are_unpacked_beside_the_questions(stored: Stored, cache: Path) -> None:
    segments, one = stored.open(), np.ones(1, np.float32)
    segments.texts.unpack_beside()
    (hit,) = segments.hits(one, np.array([id_of(3, 5)]))
    assert (hit.id, hit.title, hit.text) == passage_of(3, 5)
    while not unpacked(cache):
        time.sleep(0.01)
    assert list(unpacked(cache)) == [f"{stored.entries[1].object.sha256}.arrow"]
    assert segments.hits(one, np.array([id_of(3, 6)]))[0].id == "id-3000006"


def test_texts_that_were_read_before_are_unpacked_beside_the_questions(stored: Stored, cache: Path) -> None:
    segments, one = stored.open(), np.ones(1, np.float32)
    segments.hits(one, np.array([id_of(3, 5)]))  # as a replica does before it takes questions
    segments.texts.unpack_beside()
    segments.hits(one, np.array([id_of(3, 6)]))
    while not unpacked(cache):
        time.sleep(0.01)
    assert list(unpacked(cache)) == [f"{stored.entries[1].object.sha256}.arrow"]


def test_row_groups_of_texts_that_were_read_are_kept_up_to_a_bound(
    stored: Stored, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dpr.search.passage_texts.READ_FIRST", 100)
    store, one = RemoteStore(stored.folder), np.ones(1, np.float32)
    segments = SegmentSet.open(store, stored.entries, stored.deletions, verify=False)

    def reads_of(row: int) -> int:
        store.reads.clear()
        assert segments.hits(one, np.array([id_of(3, row)]))[0].id == f"id-{3_000_000 + row}"
        return len(store.reads)

    assert reads_of(5) > 0
    assert reads_of(6) == 0
    assert reads_of(ROW_GROUP_ROWS) > 0
    assert reads_of(7) == 0
    monkeypatch.setattr("dpr.search.passage_texts.KEPT_BYTES", 1)
    segments = SegmentSet.open(store, stored.entries, stored.deletions, verify=False)
    assert reads_of(5) > 0
    assert reads_of(6) == 0
    assert segments.hits(one, np.array([id_of(0, 1)]))[0].id == "id-1"
    assert reads_of(5) > 0


@pytest.mark.usefixtures("at_once")
@pytest.mark.parametrize("remote", [False, True])
def test_texts_are_unpacked_when_a_hit_is_shown_and_only_once(stored: Stored, cache: Path, remote: bool) -> None:
    segments = stored.open(remote=remote)
    ids_N = np.array([id_of(3, 5), id_of(0, 1)])
    segments.vectors(ids_N)
    list(segments.live_blocks())
    segments.column("text", ids_N)
    assert unpacked(cache) == {}

    one = np.ones(1, np.float32)
    segments.hits(one, ids_N[:1])
    first = unpacked(cache)
    assert list(first) == [f"{stored.entries[1].object.sha256}.arrow"]
    segments.hits(one, ids_N[:1])
    assert segments.hits(one, ids_N[1:])[0].id == "id-1"
    again = stored.open(remote=remote)  # another process would find them, too
    assert again.hits(one, ids_N[:1])[0].id == "id-3000005"
    assert unpacked(cache) == first | {
        f"{stored.entries[0].object.sha256}.arrow": unpacked(cache)[f"{stored.entries[0].object.sha256}.arrow"]
    }


@pytest.mark.usefixtures("at_once")
def test_texts_stay_readable_when_the_cache_loses_them(stored: Stored, cache: Path) -> None:
    segments, one = stored.open(), np.ones(1, np.float32)
    segments.hits(one, np.array([id_of(0, 1)]))
    for path in (cache / "entries").glob("texts/*"):
        path.unlink()
    assert segments.hits(one, np.array([id_of(0, 2)]))[0].id == "id-2"


@pytest.mark.parametrize("remote", [False, True])
def test_texts_that_were_never_shown_are_readable_when_store_and_cache_are_gone(
    stored: Stored, cache: Path, tmp_path: Path, remote: bool
) -> None:
    copy = copy_of(stored, tmp_path / "copy")
    segments = copy.open(remote=remote)
    for folder in (copy.folder, cache):
        shutil.rmtree(folder)
    (hit,) = segments.hits(np.ones(1, np.float32), np.array([id_of(3, 5)]))
    assert (hit.id, hit.title, hit.text) == passage_of(3, 5)


@pytest.mark.usefixtures("at_once")
def test_a_second_set_shares_what_both_have_and_neither_keeps_more(stored: Stored, cache: Path, tmp_path: Path) -> None:
    """Without a search for circles of references, which would come late and stop all threads."""
    copy, one = copy_of(stored, tmp_path / "copy"), np.ones(1, np.float32)
    store, opened = RemoteStore(copy.folder), OpenObjects()
    gc.disable()
    try:
        old = SegmentSet.open(store, copy.entries[:2], copy.deletions, opened=opened)
        old.hits(one, np.array([id_of(3, 5)]))
        old.owners.of(np.array([id_of(3, 5)]))
        unopened, shown, new = (entry.object.sha256 for entry in copy.entries)
        store.reads.clear()
        second = SegmentSet.open(store, copy.entries, copy.deletions, opened=opened)
        assert [method for method, _ in store.reads] == ["fetch"]  # of the third
        second.texts.prepare(old.texts)
        assert set(unpacked(cache)) == {f"{shown}.arrow", f"{new}.arrow"}
        del old
        assert {shown, unopened, new} <= mapped(cache)
        del second
        assert mapped(cache) == set()
    finally:
        gc.enable()


def mapped(cache: Path) -> set[str]:
    """Return the names, without suffixes, of the files of a cache that this process has mapped."""
    lines = Path("/proc/self/maps").read_text().splitlines()
    return {Path(line.split()[-1]).stem for line in lines if str(cache) in line}


@pytest.mark.slow
@settings(max_examples=50, deadline=None)
@given(places, st.sampled_from(["id", "title", "text"]))
@pytest.mark.parametrize("remote", [False, True])
def test_a_column_of_many_rows_is_read_without_unpacking(
    stored: Stored, remote: bool, some: list[tuple[int, int]], name: str
) -> None:
    found = stored.open(remote=remote, verify=False).column(name, np.array([id_of(*place) for place in some], np.int64))
    assert found == [passage_of(*place)[["id", "title", "text"].index(name)] for place in some]


def test_a_column_is_read_one_row_group_at_a_time(stored: Stored, cache: Path) -> None:
    store = RemoteStore(stored.folder)
    segments = SegmentSet.open(store, stored.entries, stored.deletions, verify=False)
    store.reads.clear()
    rows = [ROW_GROUP_ROWS + 3, ROW_GROUP_ROWS, ROW_GROUP_ROWS + 3]
    assert segments.column("id", np.array([id_of(3, row) for row in rows])) == [f"id-{3_000_000 + r}" for r in rows]
    assert {method for method, _ in store.reads} == {"get_range"}
    assert kept_in(cache) == digests(stored.deletions)


def test_of_a_remote_store_only_what_is_opened_for_serving_is_kept(stored: Stored, cache: Path) -> None:
    stored.open(remote=True, verify=False)
    assert kept_in(cache) == digests(stored.deletions)
    stored.open(remote=True)
    assert kept_in(cache) == digests(stored.deletions, *(entry.object for entry in stored.entries))


def kept_in(cache: Path) -> list[str]:
    """Return the digests of the objects that a cache holds."""
    return sorted(path.stem for path in (cache / "entries").rglob("*") if path.is_file())


def digests(*refs: ObjectRef | None) -> list[str]:
    return sorted(ref.sha256 for ref in refs if ref is not None)


def copy_of(stored: Stored, folder: Path) -> Stored:
    shutil.copytree(stored.folder, folder)
    return Stored(folder, stored.entries, stored.deletions, stored.vectors)


def test_a_damaged_segment_is_not_opened(stored: Stored, tmp_path: Path) -> None:
    copy = copy_of(stored, tmp_path / "copy")
    flip_a_bit(copy.folder / copy.entries[1].object.name)
    with pytest.raises(IntegrityError, match="has sha256"):
        copy.open()


def test_damaged_texts_are_refused_where_only_a_column_is_read(stored: Stored, tmp_path: Path) -> None:
    copy = copy_of(stored, tmp_path / "copy")
    path = copy.folder / copy.entries[1].object.name
    chunk = pq.read_metadata(path).row_group(0).column(2)
    data = bytearray(path.read_bytes())
    data[chunk.data_page_offset + chunk.total_compressed_size // 2] ^= 1
    path.write_bytes(data)
    for remote in (False, True):
        segments = copy.open(remote=remote, verify=False)
        with pytest.raises(IntegrityError, match=r"is damaged \("):
            segments.column("text", np.array([id_of(3, 0)]))


def test_a_deletion_set_that_is_not_that_of_the_segments_is_refused(stored: Stored) -> None:
    entries = [stored.entries[0], with_dead(stored.entries[1], np.array([1, 2], np.uint32)), stored.entries[2]]
    segments = SegmentSet.open(LocalStore(stored.folder), entries, stored.deletions)
    with pytest.raises(IntegrityError, match="names 3 dead rows of segment s3, and they are not the 2 that"):
        list(segments.live_blocks())
