"""Vectors read from plain pages are those that pyarrow reads, and any other way of writing is read by pyarrow."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dpr.pages import plain_vectors
from dpr.segment import iter_groups, read_rows, vectors_of

ROWS, DIM = 1000, 12


def table_of(vectors_ND: np.ndarray, *, nullable: bool = False) -> pa.Table:
    kind = pa.list_(pa.field("element", pa.float16(), nullable=nullable), DIM)
    lists = pa.FixedSizeListArray.from_arrays(pa.array(vectors_ND.reshape(-1)), type=kind)
    schema = pa.schema([pa.field("id", pa.int64()), pa.field("embedding", kind, nullable=nullable)])
    return pa.Table.from_arrays([pa.array(range(len(vectors_ND))), lists], schema=schema)


@pytest.fixture(scope="module", name="vectors_ND")
def any_numbers() -> np.ndarray:
    """All bit patterns come up, NaN and infinity too."""
    return np.random.default_rng(0).integers(0, 2**16, (ROWS, DIM)).astype(np.uint16).view(np.float16)


def is_plain(path: Path) -> bool:
    metadata = pq.read_metadata(path)
    rows = [metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)]
    return all(plain_vectors(path, metadata, group, (n, DIM)) is not None for group, n in enumerate(rows))


@pytest.mark.parametrize(
    ("plain", "options"),
    [
        (True, {}),
        (True, {"row_group_size": 300}),
        (True, {"data_page_size": 100}),
        (True, {"data_page_size": 7, "write_batch_size": 5}),  # pages end within a vector
        (True, {"write_statistics": True, "write_page_index": True, "write_page_checksum": True}),
        (False, {"compression": "zstd"}),
        (False, {"use_dictionary": True}),
        (False, {"data_page_version": "2.0"}),
        (False, {"column_encoding": {"embedding.list.element": "BYTE_STREAM_SPLIT"}}),
    ],
)
@pytest.mark.parametrize("remote", [False, True])
def test_pages_however_they_are_written(
    plain: bool, options: dict[str, Any], remote: bool, vectors_ND: np.ndarray, tmp_path: Path
) -> None:
    path = tmp_path / "file.parquet"
    written = {"compression": "none", "use_dictionary": False, "write_statistics": False} | options
    pq.write_table(table_of(vectors_ND), path, **written)
    assert is_plain(path) == plain
    file = io.BytesIO(path.read_bytes()) if remote else path
    found = [(vectors_of(t).view(np.uint16), t["id"].to_numpy()) for t in iter_groups(file, ["id", "embedding"])]
    np.testing.assert_array_equal(np.concatenate([vectors for vectors, _ in found]), vectors_ND.view(np.uint16))
    np.testing.assert_array_equal(np.concatenate([ids for _, ids in found]), np.arange(ROWS))
    rows = np.array([0, 299, 300, 999])
    some = read_rows(file, ["embedding"], rows)
    np.testing.assert_array_equal(vectors_of(some).view(np.uint16), vectors_ND.view(np.uint16)[rows])
    assert some.schema.field("embedding") == pq.read_schema(path).field("embedding")


def test_nulls_are_left_to_pyarrow(vectors_ND: np.ndarray, tmp_path: Path) -> None:
    whole = table_of(vectors_ND, nullable=True)
    kind = whole.schema.field("embedding").type
    rows = whole["embedding"].to_pylist()
    for place, spoilt in ((0, [None] * DIM), (ROWS - 1, [*rows[-1][:-1], None]), (5, None)):
        lists = pa.array([*rows[:place], spoilt, *rows[place + 1 :]], kind)
        path = tmp_path / f"{place}.parquet"
        pq.write_table(
            pa.table({"id": whole["id"], "embedding": lists}), path, compression="none", use_dictionary=False
        )
        assert not is_plain(path)


def test_lists_of_any_length_are_left_to_pyarrow(tmp_path: Path) -> None:
    lists = pa.array([[1.0] * 5, [2.0] * 19], pa.list_(pa.float16()))
    pq.write_table(pa.table({"embedding": lists}), tmp_path / "file.parquet", compression="none", use_dictionary=False)
    (table,) = iter_groups(tmp_path / "file.parquet", ["embedding"])
    assert table["embedding"].to_pylist() == lists.to_pylist()


def test_a_file_that_was_cut_off_within_its_pages(vectors_ND: np.ndarray, tmp_path: Path) -> None:
    path = tmp_path / "file.parquet"
    pq.write_table(table_of(vectors_ND), path, compression="none", use_dictionary=False)
    metadata = pq.read_metadata(path)
    path.write_bytes(path.read_bytes()[:-15_000])
    assert plain_vectors(path, metadata, 0, (ROWS, DIM)) is None
