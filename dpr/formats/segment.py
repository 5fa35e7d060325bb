"""The segment format: immutable Parquet of passages with their vectors, readable with any Parquet tool.

Vectors are float16, `fixed_size_list<halffloat>[D]`, uncompressed, and in one plain page a row group. So the vectors of
a row group are the last bytes of its column chunk, one after another: a local file can be mapped, and a remote one read
by range, without unpacking it. `dpr.search.vectors` does that.

Shapes: N rows, D dimensions, G row groups.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from dpr.errors import IntegrityError
from dpr.formats.extra import EXTRA, NO_EXTRA, extra_field
from dpr.formats.objects import damage_explained
from dpr.recipe import ExtraType

ROW_GROUP_ROWS = 8192
PASSAGE_COLUMNS = ("id", "title", "text", "key", "content_hash")
HASH = pa.binary(16)
FLOAT16_BYTES = 2
_ONE_PAGE_BYTES = 1 << 30
"""More than any row group holds, so that its vectors lie in one page."""
_MAX_LEVEL_BYTES_PER_NUMBER = 0.5
"""Repetition and definition levels, and the page's header, take less than this for each number of a vector."""
_MIN_HEADER_BYTES = 1_000
_INTEGER, _STRUCTURE = 5, 12
"""Types of fields in a page's header."""
_PAGE_HEADER_BYTES = 32
"""Bytes read of a page's header: enough to tell how many values the page holds."""

Vectors = npt.NDArray[np.float16]


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


def vector_field(dim: int) -> pa.Field:
    """Return the last column of a segment with vectors of width `dim`."""
    vector = pa.list_(pa.field("element", pa.float16(), nullable=False), dim)
    return pa.field("embedding", vector, nullable=False)


def segment_schema(dim: int) -> pa.Schema:
    """Return the columns of a segment with vectors of width `dim`, without extra columns."""
    return passage_schema().append(vector_field(dim))


def write_segment(path: Path, passages: pa.Table, vectors_ND: Vectors, encoder_id: str) -> None:
    """Write a segment file. `passages` has the columns of `passage_schema`, in the order of `vectors_ND` (float16).

    Extra columns may be among them.

    The same rows give the same bytes. Raises IntegrityError if the counts differ.
    """
    rows, dim = vectors_ND.shape
    if passages.num_rows != rows:
        raise IntegrityError(f"segment {path.name} would hold {passages.num_rows} passages and {rows} vectors")
    schema = passage_schema()
    if EXTRA in passages.schema.names:
        schema = schema.append(passages.schema.field(EXTRA))
    embedding = vector_column(vectors_ND)
    columns = [passages[name].combine_chunks().cast(schema.field(name).type) for name in schema.names]
    schema = schema.append(vector_field(dim))
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


def vector_column(vectors_ND: Vectors) -> pa.FixedSizeListArray:
    """Return vectors (N, D) float16 as a column."""
    flat = pa.array(np.ascontiguousarray(vectors_ND).reshape(-1), type=pa.float16())
    return pa.FixedSizeListArray.from_arrays(flat, type=segment_schema(vectors_ND.shape[1]).field("embedding").type)


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


def vectors_of(table: pa.Table) -> Vectors:
    """Return the embedding column as an array (N, D) float16, without going through Python objects."""
    column = table["embedding"]
    dim = column.type.list_size
    chunks = [chunk.flatten().to_numpy(zero_copy_only=True).reshape(-1, dim) for chunk in column.chunks]
    return chunks[0] if len(chunks) == 1 else np.concatenate([np.empty((0, dim), np.float16), *chunks])


@dataclass(frozen=True)
class VectorLayout:
    """Where the vectors of a segment lie in its file."""

    rows: int
    dim: int
    starts_G: npt.NDArray[np.int64]
    """Byte offset of the first vector of each row group, all of which but the last have ROW_GROUP_ROWS rows."""

    def offsets(self, rows_N: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Return the byte offsets (N,) of the vectors of some rows (N,)."""
        offsets_N: npt.NDArray[np.int64] = self.starts_G[rows_N // ROW_GROUP_ROWS]
        return offsets_N + (rows_N % ROW_GROUP_ROWS) * (FLOAT16_BYTES * self.dim)


def vector_layout(metadata: pq.FileMetaData, name: str, read: Callable[[int, int], bytes]) -> VectorLayout:
    """Return where the vectors lie in a segment file with this footer; `read` gives bytes by offset and length.

    The footer does not tell how many pages a row group has, so the first page of the first one is looked at: one writer
    cuts all row groups alike. Raises IntegrityError if `name` was not written as `write_segment` does.
    """
    dim = _vector_dim(metadata.schema.to_arrow_schema())
    groups = metadata.num_row_groups if metadata.num_rows else 0
    starts = np.empty(groups, np.int64)
    for group in range(groups):
        row_group = metadata.row_group(group)
        column = row_group.column(row_group.num_columns - 1)
        numbers = row_group.num_rows * dim
        level_bytes = column.total_compressed_size - FLOAT16_BYTES * numbers
        is_last = group == groups - 1
        if not (
            dim
            and (row_group.num_rows == ROW_GROUP_ROWS or (is_last and row_group.num_rows < ROW_GROUP_ROWS))
            and column.path_in_schema.startswith("embedding.")
            and column.compression == "UNCOMPRESSED"
            and not column.has_dictionary_page
            and set(column.encodings) == {"PLAIN", "RLE"}
            and column.num_values == numbers
            and (group > 0 or _page_values(read(column.data_page_offset, _PAGE_HEADER_BYTES)) == numbers)
            and 0 < level_bytes <= _MIN_HEADER_BYTES + _MAX_LEVEL_BYTES_PER_NUMBER * numbers
        ):
            raise IntegrityError(
                f"segment {name} keeps its vectors in another form than this version writes, so they cannot be read by "
                "range; run the recipe into a new store"
            )
        starts[group] = column.data_page_offset + level_bytes
    return VectorLayout(metadata.num_rows, dim, starts)


def _vector_dim(schema: pa.Schema) -> int:
    """Return the components of a vector; 0 if the file has no such column of vectors as `segment_schema` has."""
    kind = schema.field("embedding").type if "embedding" in schema.names else pa.null()
    dim = kind.list_size if pa.types.is_fixed_size_list(kind) else 0
    return dim if dim and schema.field("embedding").equals(segment_schema(dim).field("embedding")) else 0


def _page_values(header: bytes) -> int:
    """Return how many values a data page holds, from the first bytes of its header; 0 for another kind of page.

    Headers are in Thrift's compact form: fields in order, each with a byte (distance from the field before, and type)
    and, if it is an integer, its zigzag code in groups of 7 bits. Field 1 is the kind of page (0: data, version 1) and
    field 5 a structure that begins with the number of values.
    """
    field, is_inside, rest = 0, False, iter(header)
    for byte in rest:
        field += byte >> 4
        if byte & 15 == _STRUCTURE and field == 5 and not is_inside:
            field, is_inside = 0, True
        elif byte & 15 == _INTEGER:
            value = _read_integer(rest)
            if field == 1 and (is_inside or value):
                return value if is_inside else 0
        else:
            break
    return 0


def _read_integer(data: Iterator[int]) -> int:
    code = shift = 0
    for byte in data:
        code |= (byte & 127) << shift
        shift += 7
        if byte < 128:
            break
    return code >> 1


def check_segment(path: Path, encoder_id: str, vectors_ND: Vectors | None, rows: int) -> None:
    """Check that a file is a segment of that encoder with `rows` rows, and that its vectors lie where they should.

    With `vectors_ND` the first and the last vector of each row group are compared, too. Raises IntegrityError.
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
    for row, offset in zip(edges.tolist(), layout.offsets(edges).tolist(), strict=True):
        if data[offset : offset + FLOAT16_BYTES * layout.dim].tobytes() != vectors_ND[row].tobytes():
            raise IntegrityError(f"segment {path.name} does not have the vector of row {row} where it belongs")
