"""How vectors are stored: as float16, or as int8 with a scale for each vector. Readers get float16.

With int8, a component is an integer from -127 to 127 times the scale of its vector, which is the largest component over
127. So the form of a vector follows from the vector alone, not from the night or the segment that it came in. A vector
that was stored is stored again without any change: copying the rows of a segment keeps every bit.

Shapes: N rows, D dimensions.
"""

from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from dpr.recipe import StoreAs

Vectors = npt.NDArray[np.float16]
Codes = npt.NDArray[np.int8]
Scales = npt.NDArray[np.float32]
EMBEDDING = "embedding"
FLOAT16_BYTES, SCALE_BYTES = 2, 4
LARGEST_CODE = 127
_SMALLEST_SCALE = np.float32(2.0**-24)
"""The distance between the smallest numbers of float16. Codes with a smaller scale could change when read."""


def stored_bytes(dim: int, store_as: StoreAs) -> int:
    """Return the bytes that a vector of width `dim` takes in a segment."""
    return row_dtype(dim, store_as).itemsize


def row_dtype(dim: int, store_as: StoreAs) -> np.dtype[Any]:
    """Return what the bytes of one vector are: D numbers of float16, or D of int8 and then the scale as float32."""
    if store_as == "float16":
        return np.dtype(("<f2", (dim,)))
    return np.dtype([("codes", np.int8, (dim,)), ("scale", "<f4")])


def quantise(vectors_ND: Vectors) -> tuple[Codes, Scales]:
    """Return codes (N, D) and scales (N,) of vectors. What `dequantise` makes of them has the same codes and scales."""
    largest_N = np.abs(vectors_ND).max(axis=1, initial=0.0).astype(np.float32)
    scales_N = np.maximum(largest_N / np.float32(LARGEST_CODE), _SMALLEST_SCALE)
    return np.rint(vectors_ND / scales_N[:, None]).astype(np.int8), scales_N


def dequantise(codes_ND: Codes, scales_N: Scales) -> Vectors:
    """Return the vectors (N, D) float16 that codes and scales stand for."""
    return (codes_ND * scales_N[:, None]).astype(np.float16)


def to_rows(vectors_ND: Vectors, store_as: StoreAs) -> npt.NDArray[np.uint8]:
    """Return the bytes (N, B) of vectors as they lie in a segment."""
    rows, dim = vectors_ND.shape
    dtype = row_dtype(dim, store_as)
    if store_as == "float16":
        return np.ascontiguousarray(vectors_ND).view(np.uint8).reshape(rows, dtype.itemsize)
    stored_N = np.empty(rows, dtype)
    stored_N["codes"], stored_N["scale"] = quantise(vectors_ND)
    return stored_N.view(np.uint8).reshape(rows, dtype.itemsize)


def from_rows(rows_NB: npt.NDArray[np.uint8], store_as: StoreAs) -> Vectors:
    """Return the vectors (N, D) float16 of bytes (N, B) of a segment; without a copy, if they are float16."""
    if store_as == "float16":
        return rows_NB.view(np.float16)
    stored_N = rows_NB.view(row_dtype(rows_NB.shape[1] - SCALE_BYTES, store_as)).reshape(len(rows_NB))
    return dequantise(stored_N["codes"], stored_N["scale"])


def as_stored(vectors_ND: Vectors, store_as: StoreAs) -> Vectors:
    """Return vectors (N, D) as they are read once they were stored in this form."""
    return dequantise(*quantise(vectors_ND)) if store_as == "int8" else vectors_ND


def vector_field(dim: int, store_as: StoreAs = "float16") -> pa.Field:
    """Return the column of vectors of width `dim`. Parquet has no integers of one byte, so int8 is plain bytes."""
    if store_as == "float16":
        vector = pa.list_(pa.field("element", pa.float16(), nullable=False), dim)
    else:
        vector = pa.binary(stored_bytes(dim, store_as))
    return pa.field(EMBEDDING, vector, nullable=False)


def vector_column(vectors_ND: Vectors, store_as: StoreAs = "float16") -> pa.Array:
    """Return vectors (N, D) float16 as a column."""
    rows, dim = vectors_ND.shape
    kind = vector_field(dim, store_as).type
    if store_as == "float16":
        flat = pa.array(np.ascontiguousarray(vectors_ND).reshape(-1), type=pa.float16())
        return pa.FixedSizeListArray.from_arrays(flat, type=kind)
    return pa.FixedSizeBinaryArray.from_buffers(kind, rows, [None, pa.py_buffer(to_rows(vectors_ND, store_as))])


def vectors_of(table: pa.Table) -> Vectors:
    """Return the embedding column as an array (N, D) float16, without going through Python objects."""
    column = table[EMBEDDING]
    if pa.types.is_fixed_size_binary(column.type):
        width = column.type.byte_width
        parts = [_bytes_of(chunk, width) for chunk in column.chunks]
        return from_rows(np.concatenate([np.empty((0, width), np.uint8), *parts]), "int8")
    dim = column.type.list_size
    chunks = [chunk.flatten().to_numpy(zero_copy_only=True).reshape(-1, dim) for chunk in column.chunks]
    return chunks[0] if len(chunks) == 1 else np.concatenate([np.empty((0, dim), np.float16), *chunks])


def _bytes_of(chunk: pa.FixedSizeBinaryArray, width: int) -> npt.NDArray[np.uint8]:
    """Return the bytes (N, B) of an array of bytes of one width."""
    data = np.frombuffer(chunk.buffers()[1] or b"", np.uint8)
    return data[chunk.offset * width : (chunk.offset + len(chunk)) * width].reshape(-1, width)


def form_of(schema: pa.Schema) -> tuple[int, StoreAs] | None:
    """Return width and form of the vectors of a segment; None if it has no column as `vector_field` describes it."""
    field = schema.field(EMBEDDING) if EMBEDDING in schema.names else pa.field(EMBEDDING, pa.null())
    dim = 0
    store_as: StoreAs = "float16"
    if pa.types.is_fixed_size_list(field.type):
        dim, store_as = int(field.type.list_size), "float16"
    elif pa.types.is_fixed_size_binary(field.type):
        dim, store_as = int(field.type.byte_width) - SCALE_BYTES, "int8"
    return (dim, store_as) if dim > 0 and field.equals(vector_field(dim, store_as)) else None
