"""The segment format, read back with plain pyarrow."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dpr.errors import IntegrityError
from dpr.formats.segment import (
    ROW_GROUP_ROWS,
    MappedSegment,
    check_segment,
    iter_groups,
    passage_schema,
    read_hashes,
    read_rows,
    vectors_of,
    write_segment,
)

ROWS, DIM = ROW_GROUP_ROWS + 100, 12


@pytest.fixture(scope="module")
def passages() -> pa.Table:
    hashes = [row.to_bytes(16, "big") for row in range(ROWS)]
    columns = [
        [f"id-{row}" for row in range(ROWS)],
        [""] * ROWS,
        [f"text é {row}" for row in range(ROWS)],
        hashes,
        hashes,
    ]
    return pa.table(
        [pa.array(c, f.type) for c, f in zip(columns, passage_schema(), strict=True)], schema=passage_schema()
    )


@pytest.fixture(scope="module")
def vectors_ND() -> np.ndarray:
    return np.random.default_rng(0).standard_normal((ROWS, DIM)).astype(np.float16)


@pytest.fixture(scope="module")
def segment(passages: pa.Table, vectors_ND: np.ndarray, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("segment") / "segment.parquet"
    write_segment(path, passages, vectors_ND, "encoder")
    return path


def test_plain_pyarrow_reads_it(segment: Path, passages: pa.Table, vectors_ND: np.ndarray) -> None:
    table = pq.read_table(segment)
    assert table.select(passages.column_names).equals(passages)
    assert table.schema.field("embedding").type == pa.list_(pa.field("element", pa.float16(), nullable=False), DIM)
    np.testing.assert_array_equal(np.array(table["embedding"][5].as_py(), np.float16), vectors_ND[5])


def test_same_rows_same_bytes(segment: Path, passages: pa.Table, vectors_ND: np.ndarray, tmp_path: Path) -> None:
    again = tmp_path / "again.parquet"
    write_segment(again, passages, vectors_ND, "encoder")
    assert again.read_bytes() == segment.read_bytes()


def test_reading_parts(segment: Path, passages: pa.Table, vectors_ND: np.ndarray) -> None:
    rows = np.array([ROWS - 1, 3, ROW_GROUP_ROWS, 0])
    table = read_rows(segment, ["id", "embedding"], rows)
    assert table["id"].to_pylist() == [f"id-{row}" for row in sorted(rows)]
    np.testing.assert_array_equal(vectors_of(table), vectors_ND[np.sort(rows)])
    assert read_rows(segment, ["id"], np.empty(0, np.int64)).num_rows == 0
    assert read_hashes(segment)["key"].to_pylist() == passages["key"].to_pylist()
    whole_ND = np.concatenate([vectors_of(group) for group in iter_groups(segment, ["embedding"])])
    np.testing.assert_array_equal(whole_ND, vectors_ND)


def test_mapped(segment: Path, passages: pa.Table, vectors_ND: np.ndarray, tmp_path: Path) -> None:
    for _ in range(2):  # unpacked first, then found unpacked
        mapped = MappedSegment.open(lambda: segment, tmp_path / "cache")
        np.testing.assert_array_equal(mapped.vectors_ND, vectors_ND)
        assert (
            mapped.passages.slice(7, 1).to_pylist() == passages.select(["id", "title", "text"]).slice(7, 1).to_pylist()
        )


def test_mismatches_are_refused(segment: Path, passages: pa.Table, vectors_ND: np.ndarray, tmp_path: Path) -> None:
    check_segment(segment, "encoder", ROWS)
    with pytest.raises(IntegrityError, match="encoder, not other"):
        check_segment(segment, "other", ROWS)
    with pytest.raises(IntegrityError, match=f"{ROWS} rows, its record says 1"):
        check_segment(segment, "encoder", 1)
    with pytest.raises(IntegrityError, match="passages and 1 vectors"):
        write_segment(tmp_path / "x.parquet", passages, vectors_ND[:1], "encoder")
