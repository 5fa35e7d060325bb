"""Many tables read into one, against Arrow's own joining of them."""

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dpr.errors import IntegrityError
from dpr.formats.gathered import gather_table
from dpr.formats.segment import HASH

SCHEMA = pa.schema([pa.field("position", pa.int64(), nullable=False), pa.field("key", HASH, nullable=False)])
ROWS = st.lists(st.tuples(st.integers(-(2**63), 2**63 - 1), st.binary(min_size=16, max_size=16)), max_size=9)


def table(rows: list[tuple[int, bytes]], chunk: int, stored_as: pa.DataType) -> pa.Table:
    """Return rows in chunks, each of which begins within its buffer, and a column that nobody wants."""
    positions, keys = ([row[column] for row in rows] for column in (0, 1))
    parts = [
        pa.table(
            {
                "key": pa.array([b"\xaa" * 16, *keys[first : first + chunk]], HASH).cast(stored_as),
                "other": pa.array(["x"] * (1 + len(keys[first : first + chunk]))),
                "position": pa.array([7, *positions[first : first + chunk]], pa.int64()),
            }
        ).slice(1)
        for first in range(0, max(1, len(rows)), chunk)
    ]
    return pa.concat_tables(parts)


@given(st.lists(ROWS, max_size=5), st.integers(1, 4), st.sampled_from([HASH, pa.binary()]))
def test_rows_come_in_the_order_of_the_tables(
    tables: list[list[tuple[int, bytes]]], chunk: int, stored_as: pa.DataType
) -> None:
    pieces = [table(rows, chunk, stored_as) for rows in tables]
    found = gather_table([len(rows) for rows in tables], lambda number: pieces[number], SCHEMA, str)
    expected = pa.concat_tables(
        [SCHEMA.empty_table(), *(piece.select(["position", "key"]).cast(SCHEMA) for piece in pieces)]
    )
    assert found.equals(expected.combine_chunks())
    assert all(column.num_chunks == 1 for column in found.columns)


@pytest.mark.parametrize("rows", [1, 3])
def test_a_table_of_another_size_is_refused(rows: int) -> None:
    pieces = [table([(1, b"a" * 16)] * 2, 2, HASH), table([(1, b"a" * 16)] * rows, 2, HASH)]
    with pytest.raises(IntegrityError, match=f"file-1 has {rows} rows in place of 2"):
        gather_table([2, 2], lambda number: pieces[number], SCHEMA, "file-{}".format)


def test_a_table_that_lacks_values_is_refused() -> None:
    lacking = pa.table({"position": pa.array([1, None], pa.int64()), "key": pa.array([b"a" * 16] * 2, HASH)})
    with pytest.raises(IntegrityError, match="file-0 lacks values in column position"):
        gather_table([2], lambda _: lacking, SCHEMA, "file-{}".format)
