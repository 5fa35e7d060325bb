"""Reading a Parquet column of fixed-size float16 lists at the speed of copying memory.

A Parquet reader puts lists together from a repetition level for each number, which takes several times as long as
copying the numbers does. Segments hold vectors without nulls, uncompressed, in plain pages, so the numbers of a page
are its last bytes. This is checked for each page, by its header and its size; a file written otherwise is read by
pyarrow as any other.

Page headers are Thrift structs in the compact protocol: https://parquet.apache.org/docs/file-format/data-pages/
Shapes: N rows, D dimensions.
"""

from pathlib import Path
from typing import BinaryIO

import numpy as np
import numpy.typing as npt
import pyarrow.parquet as pq

Vectors = npt.NDArray[np.float16]
Fields = dict[int, "int | bytes | Fields"]

NUMBER_BYTES = 2
LEVEL_LENGTH_BYTES = 4
DATA_PAGE, PLAIN = 0, 0
# fields of a page header, and of the data page header within
PAGE_TYPE, PAGE_BYTES, DATA_PAGE_HEADER = 1, 3, 5
NUMBERS, ENCODING = 1, 2
# types of the compact protocol
STOP, TRUE, FALSE, I16, I32, I64, BINARY, STRUCT = 0, 1, 2, 4, 5, 6, 8, 12


def plain_vectors(
    file: Path | BinaryIO, metadata: pq.FileMetaData, group: int, shape: tuple[int, int]
) -> Vectors | None:
    """The vectors (N, D) of `shape` in column `embedding` of a row group; None if its pages are not plain.

    `file` is not read beyond the column. A file object is moved, so threads need one each.
    """
    row_group = metadata.row_group(group)
    columns = [row_group.column(place) for place in range(row_group.num_columns)]
    (column,) = [column for column in columns if column.path_in_schema.startswith("embedding.")]
    plain = column.compression == "UNCOMPRESSED" and not column.has_dictionary_page
    if not plain or column.physical_type != "FIXED_LEN_BYTE_ARRAY" or column.num_values != shape[0] * shape[1]:
        return None
    chunk = memoryview(_read(file, column.data_page_offset, column.total_compressed_size))
    flat = np.empty(column.num_values, np.float16)
    place, filled = 0, 0
    while filled < len(flat):
        try:
            header, place = _fields(chunk, place)
        except (IndexError, ValueError):
            return None
        page = chunk[place : place + int(header.get(PAGE_BYTES, 0))]  # type: ignore[arg-type]
        numbers = _plain_numbers(header, page)
        if numbers is None or not 0 < len(numbers) <= len(flat) - filled:
            return None
        flat[filled : filled + len(numbers)] = numbers
        filled += len(numbers)
        place += len(page)
    return flat.reshape(shape)


def _read(file: Path | BinaryIO, start: int, length: int) -> bytes:
    if isinstance(file, Path):
        with file.open("rb", buffering=0) as opened:
            opened.seek(start)
            return opened.read(length)
    file.seek(start)
    return file.read(length)


def _plain_numbers(header: Fields, page: memoryview) -> Vectors | None:
    """The numbers of a page: repetition and definition levels, each after its length, then one value for each."""
    data = header.get(DATA_PAGE_HEADER)
    if header.get(PAGE_TYPE) != DATA_PAGE or not isinstance(data, dict) or data.get(ENCODING) != PLAIN:
        return None
    levels_bytes = 0
    for _ in range(2):
        levels_bytes += LEVEL_LENGTH_BYTES + int.from_bytes(
            page[levels_bytes : levels_bytes + LEVEL_LENGTH_BYTES], "little"
        )
    # nulls and empty lists have levels and no value, so the page would be shorter
    if len(page) != levels_bytes + NUMBER_BYTES * data[NUMBERS]:  # type: ignore[operator]
        return None
    return np.frombuffer(page[levels_bytes:], np.float16)


def _fields(data: memoryview, place: int) -> tuple[Fields, int]:
    """The fields of a struct that starts at `place`, by number, and where it ends."""
    fields: Fields = {}
    number = 0
    while True:
        head, place = data[place], place + 1
        kind, step = head & 15, head >> 4
        if kind == STOP:
            return fields, place
        if not step:
            raise ValueError("field number in long form")
        number += step
        if kind in (TRUE, FALSE):
            fields[number] = int(kind == TRUE)
        elif kind in (I16, I32, I64):
            zigzag, place = _varint(data, place)
            fields[number] = (zigzag >> 1) ^ -(zigzag & 1)
        elif kind == BINARY:
            length, place = _varint(data, place)
            fields[number], place = bytes(data[place : place + length]), place + length
        elif kind == STRUCT:
            fields[number], place = _fields(data, place)
        else:
            raise ValueError(f"field of type {kind}")


def _varint(data: memoryview, place: int) -> tuple[int, int]:
    value, shift = 0, 0
    while True:
        byte, place = data[place], place + 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, place
        shift += 7
