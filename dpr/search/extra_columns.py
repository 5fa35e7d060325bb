"""The extra columns of a snapshot's segments: each is read when a filter first names it, and kept if there is room.

Shapes: N rows of a segment.
"""

import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping
from functools import cached_property
from pathlib import Path
from typing import BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from dpr.formats.extra import ARROW_TYPES, EXTRA
from dpr.formats.manifest import SegmentEntry
from dpr.formats.objects import damage_explained
from dpr.formats.segment import iter_groups
from dpr.recipe import ExtraType

KEPT_BYTES = 256 * 2**20
"""Size limit of columns in memory: 8 bytes a row for numbers and times, and 4 for texts, if many are equal."""
_TYPES = {arrow_type: type_ for type_, arrow_type in ARROW_TYPES.items()}


class ColumnCache:
    """Columns of segments, shared by the open snapshots; the least recently used are dropped."""

    def __init__(self) -> None:
        self._columns: OrderedDict[tuple[str, str], pa.Array] = OrderedDict()
        self._lock = threading.Lock()

    def take(self, sha256: str, name: str, read: Callable[[], pa.Array]) -> pa.Array:
        """Return a column of the segment with this digest; `read` reads it if it is not here."""
        with self._lock:
            if (found := self._columns.get((sha256, name))) is not None:
                self._columns.move_to_end((sha256, name))
                return found
        column = read()
        with self._lock:
            self._columns[sha256, name] = column
            while sum(kept.nbytes for kept in self._columns.values()) > KEPT_BYTES and len(self._columns) > 1:
                self._columns.popitem(last=False)
        return column


class ExtraColumns:
    """The extra columns of a snapshot's segments."""

    def __init__(
        self, entries: Mapping[int, SegmentEntry], file: Callable[[int], Path | BinaryIO], cache: ColumnCache
    ) -> None:
        """`file` opens the segment of a number."""
        self._entries, self._file, self._cache = entries, file, cache

    @cached_property
    def types(self) -> Mapping[str, ExtraType]:
        """Return the types of all columns; if segments differ in one, that of the newest."""
        types: dict[str, ExtraType] = {}
        for _, fields in sorted(self._fields.items()):
            types |= fields
        return types

    @cached_property
    def _fields(self) -> Mapping[int, Mapping[str, ExtraType]]:
        """Return the columns that each segment has."""
        found = {}
        for number in self._entries:
            file = self._file(number)
            with damage_explained(file):
                schema = pq.read_schema(file)
            fields = list(schema.field(EXTRA).type) if EXTRA in schema.names else []
            found[number] = {field.name: _TYPES[field.type] for field in fields}
        return found

    def column(self, number: int, name: str) -> pa.Array | None:
        """Return a column (N,) of a segment; texts are coded by a dictionary.

        None: all its values are null. That is so in a segment without the column, and for the live rows of one where it
        has another type than in newer ones: the type of each value belongs to a passage's key.
        """
        if self._fields[number].get(name) != self.types[name]:
            return None
        return self._cache.take(self._entries[number].object.sha256, name, lambda: self._read(number, name))

    def _read(self, number: int, name: str) -> pa.Array:
        groups = iter_groups(self._file(number), [f"{EXTRA}.{name}"])
        pieces = [chunk.field(name) for table in groups for chunk in table[EXTRA].chunks]
        column = pa.concat_arrays([pa.array([], ARROW_TYPES[self.types[name]]), *pieces])
        return column.dictionary_encode() if self.types[name] == "string" else column
