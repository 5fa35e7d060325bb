"""The segment format: plain pyarrow reads it, its vectors lie where the footer says, and other files are refused.

Shapes: N rows, D dimensions, B bytes of a vector.
"""

import functools
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dpr.errors import IntegrityError
from dpr.formats.segment import check_segment, iter_groups, read_hashes, read_rows, write_segment
from dpr.formats.stored_vectors import vectors_of
from dpr.formats.vector_layout import ROW_GROUP_ROWS, vector_layout
from tests.formats.samples import flip_a_bit, passages, random_vectors

ROWS, DIM = ROW_GROUP_ROWS + 100, 33
Bytes = npt.NDArray[np.uint16]
"""Vectors as their bytes: equal also where a number is not one."""

many_passages = functools.cache(lambda: passages(2 * ROW_GROUP_ROWS + 50))


def vectors_where_the_layout_says(file: Path) -> Bytes:
    data = file.read_bytes()
    layout = vector_layout(pq.read_metadata(file), file.name, lambda start, length: data[start : start + length])
    places_NB = layout.offsets(np.arange(layout.rows))[:, None] + np.arange(2 * layout.dim)
    return np.frombuffer(data, np.uint8)[places_NB].view(np.uint16)


@pytest.fixture(scope="module")
def vectors_ND() -> npt.NDArray[np.float16]:
    return random_vectors(ROWS, DIM)


@pytest.fixture(scope="module")
def segment(vectors_ND: npt.NDArray[np.float16], tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("segment") / "segment.parquet"
    write_segment(path, many_passages().slice(0, ROWS), vectors_ND, "encoder")
    return path


def test_plain_pyarrow_reads_it(segment: Path, vectors_ND: npt.NDArray[np.float16]) -> None:
    table, expected = pq.read_table(segment), many_passages().slice(0, ROWS)
    assert table.select(expected.column_names).equals(expected)
    assert table.schema.field("embedding").type == pa.list_(pa.field("element", pa.float16(), nullable=False), DIM)
    np.testing.assert_array_equal(np.array(table["embedding"][5].as_py(), np.float16), vectors_ND[5])


def test_same_rows_same_bytes(segment: Path, vectors_ND: npt.NDArray[np.float16], tmp_path: Path) -> None:
    again = tmp_path / "again.parquet"
    write_segment(again, many_passages().slice(0, ROWS), vectors_ND, "encoder")
    assert again.read_bytes() == segment.read_bytes()


def test_reading_some_rows_and_columns(segment: Path, vectors_ND: npt.NDArray[np.float16]) -> None:
    rows = np.array([ROWS - 1, 3, ROW_GROUP_ROWS, 0])
    table = read_rows(segment, ["id", "embedding"], rows)
    assert table["id"].to_pylist() == [f"id-{row}" for row in sorted(rows)]
    np.testing.assert_array_equal(vectors_of(table), vectors_ND[np.sort(rows)])
    assert read_rows(segment, ["id"], np.empty(0, np.int64)).num_rows == 0
    assert read_hashes(segment)["key"].to_pylist() == many_passages()["key"].to_pylist()[:ROWS]
    whole_ND = np.concatenate([vectors_of(group) for group in iter_groups(segment, ["embedding"])])
    np.testing.assert_array_equal(whole_ND, vectors_ND)


many_rows = st.sampled_from([1, 2, 100, *(n * ROW_GROUP_ROWS + more for n in (1, 2) for more in (-1, 0, 1, 50))])


@settings(max_examples=25, deadline=None)
@given(
    st.one_of(st.tuples(many_rows, st.integers(1, 9)), st.tuples(st.integers(1, 40), st.integers(1, 768))),
    st.integers(0, 2**32 - 1),
)
def test_vectors_lie_where_the_footer_says(
    tmp_path_factory: pytest.TempPathFactory, shape: tuple[int, int], seed: int
) -> None:
    path = tmp_path_factory.mktemp("segment") / "segment.parquet"
    bits_ND = np.random.default_rng(seed).integers(0, 2**16, shape, np.uint16)  # every bit pattern, NaN included
    write_segment(path, many_passages().slice(0, shape[0]), bits_ND.view(np.float16), "e")
    check_segment(path, "e", bits_ND.view(np.float16), shape[0])
    by_pyarrow_ND = vectors_of(pq.read_table(path, columns=["embedding"])).view(np.uint16)
    np.testing.assert_array_equal(by_pyarrow_ND, bits_ND)
    np.testing.assert_array_equal(vectors_where_the_layout_says(path), bits_ND)


def test_a_row_group_of_wide_vectors_is_one_page(tmp_path: Path) -> None:
    path, vectors_ND = tmp_path / "segment.parquet", random_vectors(ROW_GROUP_ROWS + 1, 768)
    write_segment(path, many_passages().slice(0, len(vectors_ND)), vectors_ND, "e")
    np.testing.assert_array_equal(vectors_where_the_layout_says(path), vectors_ND.view(np.uint16))


WRITTEN_AS_OURS: dict[str, Any] = {
    "row_group_size": ROW_GROUP_ROWS,
    "compression": "none",
    "use_dictionary": False,
    "write_statistics": False,
    "data_page_size": 1 << 30,
}
OTHER_WAYS: dict[str, dict[str, Any]] = {
    "compressed": {"compression": "zstd"},
    "compressed with snappy": {"compression": "snappy"},
    "with a dictionary": {"use_dictionary": True},
    "split by byte": {"column_encoding": {"embedding.list.element": "BYTE_STREAM_SPLIT"}},
    "pages of 1 kB": {"data_page_size": 1000},
    "pages of 100 kB": {"data_page_size": 100_000},
    "pages of 256 kB": {"data_page_size": 1 << 18},
    "pages of few rows": {"max_rows_per_page": 1000},
    "all but one row in one page": {"max_rows_per_page": ROW_GROUP_ROWS - 1},
    "pages of version 2": {"data_page_version": "2.0"},
    "smaller row groups": {"row_group_size": 5000},
    "larger row groups": {"row_group_size": 2 * ROW_GROUP_ROWS},
}


@pytest.mark.parametrize("way", OTHER_WAYS)
def test_a_file_whose_vectors_lie_otherwise_is_refused_in_a_sentence(segment: Path, tmp_path: Path, way: str) -> None:
    path, table = tmp_path / "other.parquet", pq.read_table(segment)
    pq.write_table(table, path, **(WRITTEN_AS_OURS | OTHER_WAYS[way]))
    with pytest.raises(IntegrityError, match=r"segment other\.parquet keeps its vectors in another form") as refused:
        vectors_where_the_layout_says(path)
    assert "\n" not in str(refused.value)


def as_lists(table: pa.Table) -> pa.Table:
    return table.set_column(5, "embedding", table["embedding"].cast(pa.list_(pa.float16())))


def as_float32(table: pa.Table) -> pa.Table:
    numbers = table["embedding"].combine_chunks().flatten().cast(pa.float32())
    return table.set_column(5, "embedding", pa.FixedSizeListArray.from_arrays(numbers, DIM))


def with_a_missing_number(table: pa.Table) -> pa.Table:
    numbers = table["embedding"].combine_chunks().flatten().to_pylist()
    numbers[5] = None
    return table.set_column(5, "embedding", pa.FixedSizeListArray.from_arrays(pa.array(numbers, pa.float16()), DIM))


def without_vectors(table: pa.Table) -> pa.Table:
    return table.drop_columns("embedding")


def with_another_column_behind(table: pa.Table) -> pa.Table:
    return table.append_column("score", table["embedding"].combine_chunks().flatten()[: table.num_rows])


@pytest.mark.parametrize("rows", [10, ROWS])
@pytest.mark.parametrize(
    "change", [as_lists, as_float32, with_a_missing_number, without_vectors, with_another_column_behind]
)
def test_a_file_with_other_columns_is_refused(
    segment: Path, tmp_path: Path, change: Callable[[pa.Table], pa.Table], rows: int
) -> None:
    path = tmp_path / "other.parquet"
    pq.write_table(change(pq.read_table(segment).slice(0, rows)), path, **WRITTEN_AS_OURS)
    with pytest.raises(IntegrityError, match="keeps its vectors in another form"):
        vectors_where_the_layout_says(path)


@pytest.mark.slow
@settings(max_examples=40, deadline=None)
@given(
    rows=st.sampled_from([1, 30, ROW_GROUP_ROWS - 1, ROW_GROUP_ROWS, ROWS]),
    options=st.fixed_dictionaries(
        {},
        optional={
            "row_group_size": st.integers(1000, 20_000),
            "compression": st.sampled_from(["none", "zstd"]),
            "use_dictionary": st.booleans(),
            "write_statistics": st.booleans(),
            "write_page_checksum": st.booleans(),
            "write_page_index": st.booleans(),
            "data_page_size": st.integers(1, 300_000),
            "max_rows_per_page": st.integers(1, 20_000),
            "data_page_version": st.sampled_from(["1.0", "2.0"]),
        },
    ),
)
def test_a_file_written_in_any_way_is_read_rightly_or_refused(
    segment: Path, tmp_path_factory: pytest.TempPathFactory, rows: int, options: dict[str, Any]
) -> None:
    table, path = pq.read_table(segment).slice(0, rows), tmp_path_factory.mktemp("other") / "other.parquet"
    pq.write_table(table, path, **(WRITTEN_AS_OURS | options))
    try:
        found_ND = vectors_where_the_layout_says(path)
    except IntegrityError:
        return
    np.testing.assert_array_equal(found_ND, vectors_of(table).view(np.uint16))


def test_mismatches_are_refused(segment: Path, vectors_ND: npt.NDArray[np.float16], tmp_path: Path) -> None:
    check_segment(segment, "encoder", vectors_ND, ROWS)
    with pytest.raises(IntegrityError, match="encoder, not other"):
        check_segment(segment, "other", None, ROWS)
    with pytest.raises(IntegrityError, match=f"{ROWS} rows, its record says 1"):
        check_segment(segment, "encoder", None, 1)
    with pytest.raises(IntegrityError, match="passages and 1 vectors"):
        write_segment(tmp_path / "x.parquet", many_passages().slice(0, ROWS), vectors_ND[:1], "encoder")


@pytest.mark.parametrize("row", [0, ROW_GROUP_ROWS - 1, ROW_GROUP_ROWS, ROWS - 1])
def test_vectors_that_are_not_those_written_are_found(
    segment: Path, vectors_ND: npt.NDArray[np.float16], row: int
) -> None:
    """The writer checks both ends of each row group, whatever wrote the file."""
    others_ND = vectors_ND.copy()
    others_ND[row, 0] += 1
    with pytest.raises(IntegrityError, match=f"does not have the vector of row {row} where it belongs"):
        check_segment(segment, "encoder", others_ND, ROWS)


PARALLEL_READS: dict[str, Callable[[Any], object]] = {
    "hashes": read_hashes,
    "groups": lambda file: list(iter_groups(file, ["id", "key", "embedding"])),
    "rows": lambda file: read_rows(file, ["text"], np.arange(ROWS)),
}


@pytest.mark.parametrize("where", ["page", "footer", "end"])
@pytest.mark.parametrize("reader", PARALLEL_READS)
@pytest.mark.parametrize("opened", [Path, lambda path: io.BytesIO(path.read_bytes())], ids=["file", "bytes"])
def test_a_damaged_file_is_refused_in_a_sentence(
    segment: Path, tmp_path: Path, reader: str, where: str, opened: Callable[[Path], Any]
) -> None:
    path = tmp_path / "damaged.parquet"
    data, metadata = bytearray(segment.read_bytes()), pq.read_metadata(segment)
    if where == "page":
        column = {"hashes": 3, "groups": 5, "rows": 2}[reader]
        chunk = metadata.row_group(0).column(column)
        data[chunk.data_page_offset + chunk.total_compressed_size // 2] ^= 1
    elif where == "footer":
        start = len(data) - 8 - int.from_bytes(data[-8:-4], "little")
        data[start : start + 10] = b"\xff" * 10
    else:
        del data[-5:]
    path.write_bytes(data)
    with pytest.raises(IntegrityError, match=r"is damaged \(.*\); roll back") as refused:
        PARALLEL_READS[reader](opened(path))
    assert "\n" not in str(refused.value)


def test_a_flipped_bit_of_a_vector_is_seen_by_readers_of_the_column(segment: Path, tmp_path: Path) -> None:
    path = tmp_path / "damaged.parquet"
    path.write_bytes(segment.read_bytes())
    flip_a_bit(path)
    with pytest.raises(IntegrityError, match="is damaged"):
        list(iter_groups(path, ["id", "title", "text", "key", "content_hash", "embedding"]))
