"""The segment format: immutable Parquet of passages with their vectors, readable with any Parquet tool.

Vectors are the last column, as float16 or as int8 (`dpr.formats.stored_vectors`), uncompressed, and in one plain page a
row group. So the vectors of a row group are the last bytes of its column chunk, one after another: a local file can be
mapped, and a remote one read by range, without unpacking it. `dpr.formats.vector_layout` says where they are.

Shapes: N rows, D dimensions.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import BinaryIO

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from dpr.errors import IntegrityError
from dpr.formats.extra import EXTRA, NO_EXTRA, extra_field
from dpr.formats.objects import damage_explained
from dpr.formats.stored_vectors import Vectors, to_rows, vector_column, vector_field
from dpr.formats.vector_layout import ROW_GROUP_ROWS, vector_layout
from dpr.recipe import ExtraType, StoreAs

PASSAGE_COLUMNS = ("id", "title", "text", "key", "content_hash")
HASH = pa.binary(16)
_ONE_PAGE_BYTES = 1 << 30
"""More bytes than a row group holds, so that its vectors lie in one page."""


def passage_schema(extra: Mapping[str, ExtraType] = NO_EXTRA) -> pa.Schema:
    """Return the columns that a passage has before it has a vector; `extra`: names and types of its extra columns."""
    schema = pa.schema(
        [
            pa.field("id", pa.string(), nullable=False),
            pa.field("title", pa.string(), nullable=False),
            pa.field("text", pa.string(), nullable=False),
            pa.field("key", HASH, nullable=False),
            pa.field("content_hash", HASH, nullable=False),
        ]
    )
    return schema.append(extra_field(extra)) if extra else schema


def passage_columns(extra: Mapping[str, ExtraType]) -> list[str]:
    """Return the names of the columns of `passage_schema`."""
    return [*PASSAGE_COLUMNS, EXTRA] if extra else list(PASSAGE_COLUMNS)


def segment_schema(dim: int, store_as: StoreAs = "float16") -> pa.Schema:
    """Return the columns of a segment with vectors of width `dim`, without extra columns."""
    return passage_schema().append(vector_field(dim, store_as))


def write_segment(
    path: Path, passages: pa.Table, vectors_ND: Vectors, encoder_id: str, store_as: StoreAs = "float16"
) -> None:
    """Write a segment file. `passages` has the columns of `passage_schema`, in the order of `vectors_ND` (float16).

    Extra columns may be among them. Vectors are rounded to the form in which they are stored.

    The same rows give the same bytes. Raises IntegrityError if the counts differ.
    """
    rows, dim = vectors_ND.shape
    if passages.num_rows != rows:
        raise IntegrityError(f"segment {path.name} would hold {passages.num_rows} passages and {rows} vectors")
    schema = passage_schema()
    if EXTRA in passages.schema.names:
        schema = schema.append(passages.schema.field(EXTRA))
    embedding = vector_column(vectors_ND, store_as)
    columns = [passages[name].combine_chunks().cast(schema.field(name).type) for name in schema.names]
    schema = schema.append(vector_field(dim, store_as))
    table = pa.Table.from_arrays([*columns, embedding], schema=schema.with_metadata({"encoder_id": encoder_id}))
    pq.write_table(
        table,
        path,
        row_group_size=ROW_GROUP_ROWS,
        # vectors hardly compress, and plain pages can be mapped
        compression=_compression(schema),
        use_dictionary=["title"],
        data_page_size=_ONE_PAGE_BYTES,
        write_statistics=False,
        write_page_checksum=True,
    )


def _compression(schema: pa.Schema) -> dict[str, str]:
    """Return how each column is compressed; those within the extra column have names of their own."""
    within = [f"{EXTRA}.{field.name}" for field in schema.field(EXTRA).type] if EXTRA in schema.names else []
    return dict.fromkeys((*PASSAGE_COLUMNS, *within), "zstd") | {"embedding": "none"}


def read_hashes(
    file: Path | BinaryIO, columns: Sequence[str] = ("key", "content_hash")
) -> dict[str, pa.FixedSizeBinaryArray]:
    """Return the hash columns of a segment, without touching text or vectors."""
    with damage_explained(file):
        table = pq.read_table(file, columns=list(columns), page_checksum_verification=True)
    return {name: join_hashes(table[name].chunks) for name in columns}


def join_hashes(arrays: Iterable[pa.Array]) -> pa.FixedSizeBinaryArray:
    """Return one array of the hashes of several, in their order; an empty one of none."""
    return pa.concat_arrays([pa.array([], HASH), *(array.cast(HASH) for array in arrays)])


def iter_groups(file: Path | BinaryIO, columns: Sequence[str]) -> Iterator[pa.Table]:
    """Yield some columns of a segment in row order, one row group at a time."""
    with damage_explained(file):
        parquet = pq.ParquetFile(file, page_checksum_verification=True)
        for group in range(parquet.num_row_groups):
            yield parquet.read_row_group(group, columns=list(columns))


def read_rows(file: Path | BinaryIO, columns: Sequence[str], rows: npt.NDArray[np.int64]) -> pa.Table:
    """Return some columns of the given row numbers, in ascending order of row.

    Only the row groups that hold them are read, and columns that lie side by side together. Works for any Parquet file.
    """
    with damage_explained(file):
        parquet = pq.ParquetFile(file, page_checksum_verification=True, pre_buffer=True)
        rows = np.sort(rows)
        pieces = [parquet.schema_arrow.empty_table().select(columns)]
        first = 0
        for group in range(parquet.num_row_groups):
            last = first + parquet.metadata.row_group(group).num_rows
            wanted = rows[np.searchsorted(rows, first) : np.searchsorted(rows, last)] - first
            if len(wanted):
                pieces.append(parquet.read_row_group(group, columns=list(columns)).take(pa.array(wanted)))
            first = last
    return pa.concat_tables(pieces)


def check_segment(
    path: Path, encoder_id: str, vectors_ND: Vectors | None, rows: int, store_as: StoreAs = "float16"
) -> None:
    """Check that a file is a segment of that encoder with `rows` rows, and that its vectors lie where they should.

    With `vectors_ND` the first and the last vector of each row group are compared, too, in the form `store_as`. Raises
    IntegrityError.
    """
    metadata = pq.read_metadata(path)
    stored: dict[bytes, bytes] = metadata.schema.to_arrow_schema().metadata or {}
    found = stored.get(b"encoder_id", b"").decode()
    if found != encoder_id:
        raise IntegrityError(f"segment {path.name} is of encoder {found or 'unknown'}, not {encoder_id}")
    if metadata.num_rows != rows:
        raise IntegrityError(f"segment {path.name} has {metadata.num_rows} rows, its record says {rows}")
    if vectors_ND is None or not rows:
        return
    data = np.memmap(path, np.uint8, "r")
    layout = vector_layout(metadata, path.name, lambda start, length: data[start : start + length].tobytes())
    firsts = np.arange(0, rows, ROW_GROUP_ROWS)
    edges = np.unique(np.concatenate([firsts, firsts[1:] - 1, [rows - 1]]))
    expected_NB = to_rows(vectors_ND[edges], store_as)
    for row, offset, expected in zip(edges.tolist(), layout.offsets(edges).tolist(), expected_NB, strict=True):
        if data[offset : offset + layout.row_bytes].tobytes() != expected.tobytes():
            raise IntegrityError(f"segment {path.name} does not have the vector of row {row} where it belongs")
