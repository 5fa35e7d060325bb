"""A merge writes the file of one process that adds all live vectors, whatever was cut, deleted or buffered."""

import tracemalloc
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dpr.errors import IndexBuildError, IntegrityError
from dpr.index.candidates import search
from dpr.index.choose import choose
from dpr.index.coding import build_part
from dpr.index.contents import stored_ids, verify_index
from dpr.index.faiss_file import read_faiss
from dpr.index.live_parts import PartRef
from dpr.index.merging import build_whole, merge
from dpr.index.part import write_part
from dpr.index.row_ids import index_ids
from dpr.index.training import train
from dpr.recipe_index import IndexConfig

LISTED = [
    "IVF8,Flat",
    "IVF8,PQ4x4",
    "IVF8,PQ4x6",
    "OPQ4,IVF8,PQ4x4",
    "L2norm,IVF8,PQ4x4",
    "IVF8,SQ8",
    "IVF8,SQfp16",
    "IVF8,RaBitQ",
    "IVF8,PQ4x4fs",
    "IVF8,PQ4x4fsr",
    "IVF8,RaBitQfs",
    "IVF8_HNSW8,PQ4x4",
]
TABLES = ["Flat", "PQ4x4", "OPQ4,PQ4x4", "SQ8", "RaBitQ"]
Codebook = Callable[[str], faiss.Index]
FullDisk = Callable[[], AbstractContextManager[None]]
CODEBOOK = "c0de" * 16


@pytest.fixture(scope="module")
def codebook_of(vectors_ND: npt.NDArray[np.float16]) -> Codebook:
    made: dict[str, faiss.Index] = {}

    def make(factory: str) -> faiss.Index:
        if factory not in made:
            plan = choose(IndexConfig(factory=factory), 1500, 16)
            made[factory] = train(vectors_ND[:300].astype(np.float32), plan, seed=1)
        return made[factory]

    return make


def refs_of(codebook: faiss.Index, segments: Sequence[Any], folder: Path) -> list[PartRef]:
    refs = []
    for segment in segments:
        path = folder / f"part-{segment.number}"
        write_part(build_part(codebook, segment.vectors_ND), path, CODEBOOK)
        refs.append(PartRef(segment.number, path, len(segment.vectors_ND), segment.dead, CODEBOOK))
    return refs


def single_process(codebook: faiss.Index, segments: Sequence[Any], *, lists: bool) -> faiss.Index:
    """Build with FAISS alone: add the live vectors, segment by segment, under their ids."""
    index = faiss.deserialize_index(faiss.serialize_index(codebook))
    index = index if lists else faiss.IndexIDMap(index)
    for segment in segments:
        if len(segment.live):
            index.add_with_ids(segment.vectors_ND[segment.live].astype(np.float32), segment.live_ids)
    return index


@pytest.mark.parametrize("buffer_bytes", [1, 2_000, 10**9])
@pytest.mark.parametrize("factory", LISTED + TABLES)
def test_the_merged_index_is_that_of_one_process(
    factory: str,
    buffer_bytes: int,
    codebook_of: Codebook,
    segments: Sequence[Any],
    questions_QD: npt.NDArray[np.float32],
    tmp_path: Path,
) -> None:
    codebook = codebook_of(factory)
    before = bytes(faiss.serialize_index(codebook))
    merged_rows = merge(codebook, refs_of(codebook, segments, tmp_path), tmp_path / "index", buffer_bytes)
    expected = single_process(codebook, segments, lists=factory in LISTED)
    assert bytes(faiss.serialize_index(codebook)) == before
    assert (tmp_path / "index").read_bytes() == bytes(faiss.serialize_index(expected))
    assert merged_rows == expected.ntotal == sum(len(segment.live) for segment in segments)
    merged = read_faiss(tmp_path / "index")
    np.testing.assert_array_equal(search(merged, questions_QD, 9, 3), search(expected, questions_QD, 9, 3))


def test_exactly_the_live_rows_are_there(
    codebook_of: Codebook,
    segments: Sequence[Any],
    tmp_path: Path,
) -> None:
    codebook = codebook_of("IVF8,PQ4x4")
    merge(codebook, refs_of(codebook, segments, tmp_path), tmp_path / "index")
    live_ids = np.concatenate([segment.live_ids for segment in segments])
    index = read_faiss(tmp_path / "index", mapped=True)
    np.testing.assert_array_equal(np.sort(stored_ids(index)), np.sort(live_ids))
    np.testing.assert_array_equal(stored_ids(index), stored_ids(index, tmp_path / "index"))
    verify_index(index, len(live_ids), tmp_path / "index")


@pytest.mark.parametrize("factory", ["IVF8,PQ4x4", "IVF8,PQ4x4fs", "Flat"])
@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_history_merges_to_the_index_of_one_process(
    factory: str,
    data: st.DataObject,
    codebook_of: Codebook,
    vectors_ND: npt.NDArray[np.float16],
    segment_type: type,
    tmp_path: Path,
) -> None:
    codebook = codebook_of(factory)
    numbers = data.draw(st.lists(st.integers(0, 2**31 - 1), min_size=1, max_size=5, unique=True))
    segments = []
    for number in numbers:
        first, rows = data.draw(st.integers(0, 1000)), data.draw(st.integers(0, 200))
        dead = data.draw(st.sets(st.integers(0, rows - 1))) if rows else set()
        segments.append(segment_type(number, vectors_ND[first : first + rows], np.array(sorted(dead), np.uint32)))
    merge(codebook, refs_of(codebook, segments, tmp_path), tmp_path / "index", data.draw(st.integers(1, 5_000)))
    expected = single_process(codebook, segments, lists=factory in LISTED)
    merged = read_faiss(tmp_path / "index")
    assert bytes(faiss.serialize_index(merged)) == bytes(faiss.serialize_index(expected))


@pytest.mark.slow
def test_a_merge_holds_a_buffer_and_not_the_index(codebook_of: Codebook, segment_type: type, tmp_path: Path) -> None:
    codebook = codebook_of("IVF128,Flat")
    rng = np.random.default_rng(0)
    vectors_ND = rng.normal(size=(4_000, 16)).astype(np.float16)
    refs = refs_of(codebook, [segment_type(n, vectors_ND, np.empty(0, np.uint32)) for n in range(20)], tmp_path)
    merge(codebook, refs, tmp_path / "first", buffer_bytes=1)  # what the first of all merges imports is not counted
    tracemalloc.start()
    merge(codebook, refs, tmp_path / "index", buffer_bytes=1)  # so the buffer is one list, at most the largest
    peak_bytes = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    largest_bytes = verify_index(read_faiss(tmp_path / "index"), 80_000).largest_list * (64 + 8)
    assert peak_bytes < 4 * largest_bytes < (tmp_path / "index").stat().st_size


def test_a_graph_is_built_whole(
    codebook_of: Codebook,
    segments: Sequence[Any],
    questions_QD: npt.NDArray[np.float32],
    tmp_path: Path,
) -> None:
    codebook = codebook_of("HNSW8")
    live = [(segment.number, segment.live, segment.vectors_ND[segment.live]) for segment in segments]
    rows = build_whole(codebook, live, tmp_path / "index")
    expected = single_process(codebook, segments, lists=False)
    built = read_faiss(tmp_path / "index")
    assert codebook.ntotal == 0
    assert rows == built.ntotal == expected.ntotal
    np.testing.assert_array_equal(search(built, questions_QD, 9, 1), search(expected, questions_QD, 9, 1))
    with pytest.raises(IndexBuildError, match="IndexHNSWFlat cannot be merged from parts; build it whole"):
        merge(codebook, [], tmp_path / "other")


def test_ids_lead_to_segment_and_row() -> None:
    np.testing.assert_array_equal(index_ids(5, np.array([0, 7, 2**32 - 1])), [5 << 32, (5 << 32) + 7, (6 << 32) - 1])
    for number in (-1, 2**31):
        with pytest.raises(IntegrityError, match=f"segment number {number} is outside 0 to 2147483647"):
            index_ids(number, np.array([0]))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rows": 501}, "has 500 rows, 8 lists and 2 bytes a code; segment and codebook have 501, 8 and 2"),
        ({"dead_rows": np.array([500], np.uint32)}, "1 dead rows of segment 0 are not ascending numbers below 500"),
        ({"dead_rows": np.array([3, 3], np.uint32)}, "2 dead rows of segment 0 are not ascending"),
        ({"dead_rows": np.array([4, 3], np.uint32)}, "2 dead rows of segment 0 are not ascending"),
        ({"segment_number": 3}, "each segment may come once"),
        ({"codebook_sha256": "f" * 64}, "segment 0 was coded with the codebook of SHA-256 c0de.* has that of fff"),
    ],
)
def test_parts_that_do_not_fit_are_refused_and_leave_no_file(
    changes: dict[str, object],
    message: str,
    codebook_of: Codebook,
    segments: Sequence[Any],
    tmp_path: Path,
) -> None:
    codebook = codebook_of("IVF8,PQ4x4")
    refs = refs_of(codebook, segments, tmp_path)
    refs[0] = PartRef(**(vars(refs[0]) | changes))  # type: ignore[arg-type]
    with pytest.raises(IntegrityError, match=message):
        merge(codebook, refs, tmp_path / "index")
    assert not (tmp_path / "index").exists()


@pytest.mark.parametrize("other", ["IVF16,PQ4x4", "IVF8,PQ8x4", "Flat"])
def test_a_part_of_another_codebook_is_refused(
    other: str,
    codebook_of: Codebook,
    segments: Sequence[Any],
    tmp_path: Path,
) -> None:
    refs = refs_of(codebook_of("IVF8,PQ4x4"), segments, tmp_path)
    with pytest.raises(IntegrityError, match="8 lists and 2 bytes a code; segment and codebook have"):
        merge(codebook_of(other), refs, tmp_path / "index")


@pytest.mark.parametrize("factory", ["IVF8,Flat", "Flat"])
def test_a_disk_that_fills_up_leaves_no_index(
    factory: str,
    codebook_of: Codebook,
    segments: Sequence[Any],
    tmp_path: Path,
    full_disk: FullDisk,
) -> None:
    codebook = codebook_of(factory)
    refs = refs_of(codebook, segments, tmp_path)
    with full_disk(), pytest.raises(IndexBuildError, match=r"cannot be written: .*; free disk space"):
        merge(codebook, refs, tmp_path / "index")
    assert not (tmp_path / "index").exists()
