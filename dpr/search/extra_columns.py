"""The extra columns of a snapshot's segments: each is read when a filter first names it, and kept if there is room.

Shapes: N rows of a segment.
"""

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
from dpr.search.recently_used import RecentlyUsed

KEPT_BYTES = 256 * 2**20
"""Size limit of columns in memory: 8 bytes a row for numbers and times, and 4 for texts, if many are equal."""
_TYPES = {arrow_type: type_ for type_, arrow_type in ARROW_TYPES.items()}


class ColumnCache(RecentlyUsed[tuple[str, str], pa.Array]):
    """Columns by the digest of their segment and their name, shared by the open snapshots."""

    def __init__(self) -> None:
        super().__init__(KEPT_BYTES, lambda column: column.nbytes)


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
        return self._cache.take((self._entries[number].object.sha256, name), lambda: self._read(number, name))

    def _read(self, number: int, name: str) -> pa.Array:
        groups = iter_groups(self._file(number), [f"{EXTRA}.{name}"])
        pieces = [chunk.field(name) for table in groups for chunk in table[EXTRA].chunks]
        column = pa.concat_arrays([pa.array([], ARROW_TYPES[self.types[name]]), *pieces])
        return column.dictionary_encode() if self.types[name] == "string" else column
