"""The changes file of a run: one row group a unit, read alone."""

import io
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dpr.errors import IntegrityError
from dpr.formats import MISSING
from dpr.formats.changes import SCHEMA, Reason, changes_table, read_unit, write_changes
from dpr.formats.segment import HASH
from tests.formats.samples import flip_a_bit


def unit(rows: int, seed: int) -> pa.Table:
    rng = np.random.default_rng(seed)
    hashes = [pa.array([rng.bytes(16) for _ in range(rows)], HASH) for _ in range(2)]
    slices, sources = (rng.integers(MISSING, 5, rows) for _ in range(2))
    return changes_table(slices, rng.integers(0, 2**60, rows), *hashes, sources, rng.integers(0, len(Reason), rows))


@settings(deadline=None, max_examples=30)
@given(st.lists(st.integers(1, 300), min_size=1, max_size=6), st.integers(0, 1000))
def test_every_unit_is_read_back_alone(tmp_path_factory: pytest.TempPathFactory, sizes: list[int], seed: int) -> None:
    path = tmp_path_factory.mktemp("changes") / "changes.parquet"
    units = [unit(rows, seed + number) for number, rows in enumerate(sizes)]
    write_changes(path, units)
    for number, table in enumerate(units):
        assert read_unit(path, number).equals(table)
        assert read_unit(io.BytesIO(path.read_bytes()), number).equals(table)


def test_a_unit_of_more_rows_than_pyarrow_groups_by_itself_is_one_group(tmp_path: Path) -> None:
    rows = 1_100_000  # pyarrow's own default is 1,048,576
    hashes = pa.FixedSizeBinaryArray.from_buffers(HASH, rows, [None, pa.py_buffer(bytes(16 * rows))])
    numbers = np.arange(rows)
    table = changes_table(numbers % 7, numbers, hashes, hashes, numbers % 3, numbers % 5)
    write_changes(tmp_path / "changes.parquet", [table, table.slice(0, 1)])
    assert read_unit(tmp_path / "changes.parquet", 0).num_rows == rows
    assert read_unit(tmp_path / "changes.parquet", 1).num_rows == 1


def test_columns_have_the_types_of_the_format() -> None:
    assert unit(3, 0).schema.equals(SCHEMA)


def test_a_damaged_file_is_refused_in_a_sentence(tmp_path: Path) -> None:
    path = tmp_path / "changes.parquet"
    write_changes(path, [unit(500, 0)])
    flip_a_bit(path)
    with pytest.raises(IntegrityError, match=r"changes\.parquet is damaged"):
        read_unit(path, 0)
