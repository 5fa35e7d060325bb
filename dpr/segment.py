"""The segment format: immutable Parquet of passages with their vectors, readable with any Parquet tool.

Shapes: N rows, D dimensions. Vectors are float16, `fixed_size_list<halffloat>[D]`.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from dpr.errors import IntegrityError
from dpr.pages import plain_vectors

ROW_GROUP_ROWS = 8192
PASSAGE_COLUMNS = ("id", "title", "text", "key", "content_hash")
HASH = pa.binary(16)

Vectors = npt.NDArray[np.float16]


def passage_schema() -> pa.Schema:
    """Columns that a passage has before it has a vector."""
    return pa.schema(
        [
            pa.field("id", pa.string(), nullable=False),
            pa.field("title", pa.string(), nullable=False),
            pa.field("text", pa.string(), nullable=False),
            pa.field("key", HASH, nullable=False),
            pa.field("content_hash", HASH, nullable=False),
        ]
    )


def segment_schema(dim: int) -> pa.Schema:
    """Columns of a segment with vectors of width `dim`."""
    vector = pa.list_(pa.field("element", pa.float16(), nullable=False), dim)
    return passage_schema().append(pa.field("embedding", vector, nullable=False))


def write_segment(path: Path, passages: pa.Table, vectors_ND: Vectors, encoder_id: str) -> None:
    """Write a segment file. `passages` has the columns of `passage_schema`, in the order of `vectors_ND`.

    The same rows give the same bytes. Raises IntegrityError if the counts differ.
    """
    rows, dim = vectors_ND.shape
    if passages.num_rows != rows:
        raise IntegrityError(f"segment {path.name} would hold {passages.num_rows} passages and {rows} vectors")
    schema = segment_schema(dim)
    flat = pa.array(np.ascontiguousarray(vectors_ND).reshape(-1), type=pa.float16())
    embedding = pa.FixedSizeListArray.from_arrays(flat, type=schema.field("embedding").type)
    columns = [passages[name].combine_chunks().cast(schema.field(name).type) for name in PASSAGE_COLUMNS]
    table = pa.Table.from_arrays([*columns, embedding], schema=schema.with_metadata({"encoder_id": encoder_id}))
    pq.write_table(
        table,
        path,
        row_group_size=ROW_GROUP_ROWS,
        # vectors hardly compress, and plain pages are the fastest to read
        compression=dict.fromkeys(PASSAGE_COLUMNS, "zstd") | {"embedding": "none"},
        use_dictionary=["title"],
        write_statistics=False,
    )


def read_hashes(
    file: Path | BinaryIO, columns: tuple[str, ...] = ("key", "content_hash")
) -> dict[str, pa.FixedSizeBinaryArray]:
    """The hash columns of a segment, without touching text or vectors."""
    table = pq.read_table(file, columns=list(columns))
    return {name: pa.concat_arrays([pa.array([], HASH), *table[name].cast(HASH).chunks]) for name in columns}


def iter_groups(file: Path | BinaryIO, columns: Sequence[str]) -> Iterator[pa.Table]:
    """Some columns of a segment in row order, one row group at a time."""
    parquet = pq.ParquetFile(file)
    for group in range(parquet.num_row_groups):
        yield _read_group(file, parquet, group, columns)


def read_rows(file: Path | BinaryIO, columns: Sequence[str], rows: npt.NDArray[np.int64]) -> pa.Table:
    """Some columns of the given row numbers, in ascending order of row, reading only the row groups that hold them."""
    parquet = pq.ParquetFile(file)
    rows = np.sort(rows)
    pieces = [parquet.schema_arrow.empty_table().select(columns)]
    first = 0
    for group in range(parquet.num_row_groups):
        last = first + parquet.metadata.row_group(group).num_rows
        wanted = rows[np.searchsorted(rows, first) : np.searchsorted(rows, last)] - first
        if len(wanted):
            pieces.append(_read_group(file, parquet, group, columns).take(pa.array(wanted)))
        first = last
    return pa.concat_tables(pieces)


def _read_group(file: Path | BinaryIO, parquet: pq.ParquetFile, group: int, columns: Sequence[str]) -> pa.Table:
    """Some columns of a row group, in the order of the file, vectors at the speed of copying."""
    schema = parquet.schema_arrow
    if "embedding" not in columns:
        return parquet.read_row_group(group, columns=list(columns))
    kind, rows = schema.field("embedding").type, parquet.metadata.row_group(group).num_rows
    shape = (rows, kind.list_size if pa.types.is_fixed_size_list(kind) else 0)
    vectors_ND = plain_vectors(file, parquet.metadata, group, shape)
    if vectors_ND is None:
        return parquet.read_row_group(group, columns=list(columns))
    names = [name for name in schema.names if name in columns]
    others = parquet.read_row_group(group, columns=[name for name in names if name != "embedding"])
    lists = pa.FixedSizeListArray.from_arrays(pa.array(vectors_ND.reshape(-1)), type=kind)
    arrays = [lists if name == "embedding" else others[name] for name in names]
    return pa.Table.from_arrays(arrays, schema=pa.schema([schema.field(name) for name in names], schema.metadata))


def vectors_of(table: pa.Table) -> Vectors:
    """The embedding column as an array (N, D), without going through Python objects."""
    column = table["embedding"]
    dim = column.type.list_size
    chunks = [chunk.flatten().to_numpy(zero_copy_only=True).reshape(-1, dim) for chunk in column.chunks]
    return chunks[0] if len(chunks) == 1 else np.concatenate([np.empty((0, dim), np.float16), *chunks])


def check_segment(path: Path, encoder_id: str, rows: int) -> None:
    """Raise IntegrityError unless the file is a segment of that encoder with so many rows."""
    file = pq.ParquetFile(path)
    metadata: dict[bytes, Any] = file.schema_arrow.metadata or {}
    found = metadata.get(b"encoder_id", b"").decode()
    if found != encoder_id:
        raise IntegrityError(f"segment {path.name} is of encoder {found or 'unknown'}, not {encoder_id}")
    if file.metadata.num_rows != rows:
        raise IntegrityError(f"segment {path.name} has {file.metadata.num_rows} rows, its record says {rows}")


@dataclass(frozen=True)
class MappedSegment:
    """A segment unpacked for random access: both files are memory-mapped, so rows cost a page read, not memory."""

    vectors_ND: npt.NDArray[np.float16]
    passages: pa.Table
    """Columns id, title, text."""

    @classmethod
    def open(cls, fetch: Callable[[], Path], folder: Path) -> "MappedSegment":
        """Map what `folder` holds; if that is nothing yet, `fetch` gives the segment file to unpack into it first."""
        vectors, passages = folder / "vectors.npy", folder / "passages.arrow"
        if not passages.exists():
            folder.mkdir(parents=True, exist_ok=True)
            _unpack(fetch(), vectors, passages)
        mapped = np.load(vectors, mmap_mode="r", allow_pickle=False)
        table = pa.ipc.open_file(pa.memory_map(str(passages))).read_all()
        return cls(mapped, table)


def _unpack(segment: Path, vectors: Path, passages: Path) -> None:
    metadata = pq.read_metadata(segment)
    dim = metadata.schema.to_arrow_schema().field("embedding").type.list_size
    suffix = f".tmp-{os.getpid()}"
    shape = (metadata.num_rows, dim)
    mapped_ND = np.lib.format.open_memmap(str(vectors) + suffix, mode="w+", dtype=np.float16, shape=shape)
    schema = pa.schema([passage_schema().field(name) for name in ("id", "title", "text")])
    first = 0
    with pa.OSFile(str(passages) + suffix, "wb") as sink, pa.ipc.new_file(sink, schema) as writer:
        for table in iter_groups(segment, ["id", "title", "text", "embedding"]):
            mapped_ND[first : first + table.num_rows] = vectors_of(table)
            writer.write_table(table.select(["id", "title", "text"]).cast(schema))
            first += table.num_rows
    mapped_ND.flush()
    os.replace(str(vectors) + suffix, vectors)
    os.replace(str(passages) + suffix, passages)  # last: its presence says that both are whole
