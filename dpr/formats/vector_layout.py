"""Where the vectors of a segment lie in its file: they are the last bytes of each row group's last column.

Shapes: N rows, D dimensions, G row groups.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow.parquet as pq

from dpr.errors import IntegrityError
from dpr.formats.stored_vectors import EMBEDDING, form_of, stored_bytes
from dpr.recipe import StoreAs

ROW_GROUP_ROWS = 8192
_MAX_LEVEL_BYTES_PER_NUMBER = 0.5
"""Repetition and definition levels, and the page's header, take less than this for each number of a vector."""
_MIN_HEADER_BYTES = 1_000
_INTEGER, _STRUCTURE = 5, 12
"""Types of fields in a page's header."""
_PAGE_HEADER_BYTES = 32
"""Bytes to read of a page's header: enough to find how many values the page holds."""


@dataclass(frozen=True)
class VectorLayout:
    """Where the vectors of a segment lie in its file, and in which form."""

    rows: int
    dim: int
    store_as: StoreAs
    starts_G: npt.NDArray[np.int64]
    """Byte offset of the first vector of each row group, all of which but the last have ROW_GROUP_ROWS rows."""

    @property
    def row_bytes(self) -> int:
        """Return the bytes of one vector."""
        return stored_bytes(self.dim, self.store_as)

    def offsets(self, rows_N: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Return the byte offsets (N,) of the vectors of some rows (N,)."""
        offsets_N: npt.NDArray[np.int64] = self.starts_G[rows_N // ROW_GROUP_ROWS]
        return offsets_N + (rows_N % ROW_GROUP_ROWS) * self.row_bytes


def vector_layout(metadata: pq.FileMetaData, name: str, read: Callable[[int, int], bytes]) -> VectorLayout:
    """Return where the vectors lie in a segment file with this footer; `read` gives bytes by offset and length.

    The footer does not tell how many pages a row group has, so the first page of the first one is looked at: one writer
    cuts all row groups alike. Raises IntegrityError if `name` was not written as `write_segment` does.
    """
    form = form_of(metadata.schema.to_arrow_schema())
    if form is None:
        raise _other_form(name)
    layout = VectorLayout(metadata.num_rows, *form, np.empty(metadata.num_row_groups if metadata.num_rows else 0, int))
    for group in range(len(layout.starts_G)):
        row_group = metadata.row_group(group)
        column = row_group.column(row_group.num_columns - 1)
        # a list counts its numbers, and levels that say where it begins come before them; a value of bytes has neither
        values = row_group.num_rows * (layout.dim if layout.store_as == "float16" else 1)
        before_bytes = column.total_compressed_size - row_group.num_rows * layout.row_bytes
        is_last = group == len(layout.starts_G) - 1
        if not (
            (row_group.num_rows == ROW_GROUP_ROWS or (is_last and row_group.num_rows < ROW_GROUP_ROWS))
            and column.path_in_schema.split(".")[0] == EMBEDDING
            and column.compression == "UNCOMPRESSED"
            and not column.has_dictionary_page
            and "PLAIN" in column.encodings
            and set(column.encodings) <= {"PLAIN", "RLE"}
            and column.num_values == values
            and (group > 0 or _page_values(read(column.data_page_offset, _PAGE_HEADER_BYTES)) == values)
            and 0 < before_bytes <= _MIN_HEADER_BYTES + _MAX_LEVEL_BYTES_PER_NUMBER * values
        ):
            raise _other_form(name)
        layout.starts_G[group] = column.data_page_offset + before_bytes
    return layout


def _other_form(name: str) -> IntegrityError:
    return IntegrityError(
        f"segment {name} keeps its vectors in another form than this version writes, so they cannot be read by "
        "range; run the recipe into a new store"
    )


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
