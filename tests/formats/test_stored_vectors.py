"""Vectors as int8: compared with plain arithmetic, number by number; stored and read again without any change.

Shapes: N rows, D dimensions.
"""

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from dpr.errors import IntegrityError
from dpr.formats.segment import check_segment, segment_schema, write_segment
from dpr.formats.stored_vectors import as_stored, dequantise, form_of, quantise, stored_bytes, vectors_of
from dpr.formats.vector_layout import ROW_GROUP_ROWS, vector_layout
from dpr.search.vectors import SegmentVectors
from dpr.store import LocalStore
from tests.collection import stored_vector
from tests.formats.samples import RemoteStore, passages, put_segment, random_vectors

ROWS, DIM = ROW_GROUP_ROWS + 9, 33
finite = st.floats(width=16, allow_nan=False, allow_infinity=False)


@settings(deadline=None)
@given(arrays(np.float16, st.tuples(st.integers(0, 4), st.integers(1, 9)), elements=finite))
def test_codes_are_the_nearest_integers_and_do_not_change_again(vectors_ND: npt.NDArray[np.float16]) -> None:
    codes_ND, scales_N = quantise(vectors_ND)
    for vector, codes, scale in zip(vectors_ND.tolist(), codes_ND.tolist(), scales_N.tolist(), strict=True):
        assert scale == pytest.approx(max(max(map(abs, vector)) / 127, 2.0**-24), rel=1e-6)
        assert all(abs(number / scale - code) <= 0.5 + 1e-4 for number, code in zip(vector, codes, strict=True))
        assert all(-127 <= code <= 127 for code in codes)
    again_ND, same_N = quantise(dequantise(codes_ND, scales_N))
    np.testing.assert_array_equal(again_ND, codes_ND)
    np.testing.assert_array_equal(same_N, scales_N)


def test_scores_err_by_no_more_than_half_a_step_a_number() -> None:
    vectors_ND, questions_QD = random_vectors(200, 48), random_vectors(20, 48, seed=1).astype(np.float64)
    steps_N = np.abs(vectors_ND.astype(np.float64)).max(axis=1) / 127
    errors_NQ = (as_stored(vectors_ND, "int8").astype(np.float64) - vectors_ND) @ questions_QD.T
    rounding = 1.02  # of the numbers to float16, once more
    assert (np.abs(errors_NQ) <= rounding * 0.5 * steps_N[:, None] * np.abs(questions_QD).sum(axis=1)).all()
    assert np.abs(errors_NQ).max() > 0
    assert as_stored(vectors_ND, "float16") is vectors_ND


@pytest.fixture(scope="module")
def vectors_ND() -> npt.NDArray[np.float16]:
    return random_vectors(ROWS, DIM)


@pytest.fixture(scope="module")
def segment(vectors_ND: npt.NDArray[np.float16], tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("segment") / "segment.parquet"
    write_segment(path, passages(ROWS), vectors_ND, "encoder", "int8")
    check_segment(path, "encoder", vectors_ND, ROWS, "int8")
    return path


def test_any_reader_of_parquet_reads_them(segment: Path, vectors_ND: npt.NDArray[np.float16]) -> None:
    table = pq.read_table(segment)
    assert form_of(table.schema) == (DIM, "int8")
    read_ND = np.stack([stored_vector(value) for value in table["embedding"].to_pylist()])
    np.testing.assert_array_equal(read_ND, as_stored(vectors_ND, "int8").astype(np.float32))
    some = table.slice(7, 40)  # which begins within its buffer
    np.testing.assert_array_equal(vectors_of(some), as_stored(vectors_ND, "int8")[7:47])


def test_a_vector_takes_a_byte_a_number(segment: Path) -> None:
    metadata = pq.read_metadata(segment)
    groups = [metadata.row_group(place) for place in range(metadata.num_row_groups)]
    sizes = [group.column(group.num_columns - 1).total_compressed_size for group in groups]
    vector_bytes = [group.num_rows * stored_bytes(DIM, "int8") for group in groups]
    assert all(0 < size - least < 100 for size, least in zip(sizes, vector_bytes, strict=True))
    assert (stored_bytes(384, "int8"), stored_bytes(384, "float16")) == (388, 768)


@pytest.mark.parametrize("kind", [LocalStore, RemoteStore])
def test_rows_and_row_groups_are_read_where_they_lie(
    tmp_path: Path, kind: type[LocalStore], vectors_ND: npt.NDArray[np.float16]
) -> None:
    entry = put_segment(LocalStore(tmp_path / "store"), tmp_path, 0, vectors_ND, store_as="int8")
    vectors = SegmentVectors.open(kind(tmp_path / "store"), entry.object)
    expected_ND = as_stored(vectors_ND, "int8")
    rows_N = np.array([ROWS - 1, 0, 5, ROW_GROUP_ROWS, 5])
    np.testing.assert_array_equal(vectors.rows(rows_N), expected_ND[rows_N])
    np.testing.assert_array_equal(vectors.all(), expected_ND)
    assert (vectors.dim, vectors.store_as) == (DIM, "int8")


def test_copied_rows_are_the_same_bytes(segment: Path, tmp_path: Path) -> None:
    table = pq.read_table(segment)
    write_segment(tmp_path / "copy.parquet", passages(ROWS), vectors_of(table), "encoder", "int8")
    assert pq.read_table(tmp_path / "copy.parquet")["embedding"].equals(table["embedding"])


@pytest.mark.parametrize("width", [3, 4])
def test_bytes_that_hold_no_vector_are_refused(segment: Path, tmp_path: Path, width: int) -> None:
    table, path = pq.read_table(segment).slice(0, 9), tmp_path / "other.parquet"
    pq.write_table(table.set_column(5, "embedding", pa.array([b"x" * width] * 9, pa.binary(width))), path)
    with pytest.raises(IntegrityError, match="keeps its vectors in another form"):
        vector_layout(pq.read_metadata(path), path.name, lambda start, length: path.read_bytes()[start:][:length])


def test_the_form_is_part_of_the_schema() -> None:
    assert [form_of(segment_schema(5, form)) for form in ("float16", "int8")] == [(5, "float16"), (5, "int8")]
