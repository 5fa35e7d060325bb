"""The texts of passages: read from compressed segments, or from unpacked copies in this machine's cache.

Unpacking a segment takes a tenth of a second or more, reading one of its row groups some milliseconds. So the first
texts of a segment are read by row groups, of which some are kept. Then the texts are unpacked and mapped: at once, or
in a thread beside the work where questions must not wait.
"""

import logging
import weakref
from bisect import bisect_right
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import accumulate
from pathlib import Path
from typing import BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from dpr.formats.extra import EXTRA, shown
from dpr.formats.manifest import SegmentEntry
from dpr.formats.objects import damage_explained
from dpr.formats.records import ObjectRef
from dpr.formats.segment import iter_groups
from dpr.formats.vector_layout import ROW_GROUP_ROWS
from dpr.search.hits import Passage
from dpr.search.opened import OpenObjects
from dpr.search.recently_used import RecentlyUsed
from dpr.store import mapped_files
from dpr.store.cache import local_cache
from dpr.store.mapped_files import map_file, touch
from dpr.store.small_reads import SmallReads

TEXT_COLUMNS = ["id", "title", "text"]
READ_FIRST = 4
"""Row groups of a segment that are read before its texts are unpacked, if questions may wait for unpacking."""
KEPT_BYTES = 48 * 2**20
"""Size limit of row groups in memory."""
CUT = "it is a copy in this machine's cache, so remove it and start again"
"""What to do if unpacked texts are cut while they are open."""
MAPPED_BYTES = mapped_files.KEPT_BYTES
"""Segments that take no more have texts that stay mapped."""

_log = logging.getLogger(__name__)


Characters = Callable[[int, int], bytes | memoryview]
"""Returns the bytes of a column's characters from one place to another."""


class _Strings:
    """A column of strings, none of which is missing, read from its buffers: that takes a third of what Arrow takes."""

    def __init__(self, column: pa.StringArray, characters: Characters) -> None:
        _, offsets, _ = column.buffers()
        self._offsets = memoryview(offsets).cast("i")[column.offset :]
        self._characters = characters

    def __getitem__(self, place: int) -> str:
        return str(self._characters(self._offsets[place], self._offsets[place + 1]), "utf-8")


def _in_memory(column: pa.StringArray) -> Characters:
    characters = memoryview(column.buffers()[2] or b"")
    return lambda first, end: characters[first:end]


class Texts:
    """A table of texts whose rows are read one at a time. To slice the table for a row takes ten times as long."""

    def __init__(self, table: pa.Table, characters: Callable[[pa.StringArray], Characters] = _in_memory) -> None:
        """`characters` says how those of a column are read."""
        self.size_bytes = table.nbytes
        batches = table.to_batches()
        self._ends = list(accumulate(map(len, batches)))
        self._strings = [
            [_Strings(column, characters(column)) for column in map(batch.column, TEXT_COLUMNS)] for batch in batches
        ]
        self._extra = [batch[EXTRA] if EXTRA in table.schema.names else None for batch in batches]

    @classmethod
    def of_file(cls, path: Path, *, is_read: bool) -> "Texts":
        """Map a table that is stored as an Arrow file, without compression.

        `is_read`: characters are read from the file. Where they are mapped, a few of them make up to two megabytes
        around each count as memory of this process, as much as the system keeps together, until they are given back.
        """
        mapped = map_file(path)
        table = pa.ipc.open_file(pa.BufferReader(pa.py_buffer(mapped))).read_all()
        reads = SmallReads.open([path], CUT) if is_read else None
        return cls(table) if reads is None else cls(table, partial(_of_file, reads, mapped.ctypes.data))

    def row(self, place: int) -> Passage:
        """Return a row as a passage of one text."""
        batch = bisect_right(self._ends, place)
        place -= self._ends[batch - 1] if batch else 0
        id_, title, text = (strings[place] for strings in self._strings[batch])
        column = self._extra[batch]
        fields = {} if column is None else column[place].as_py() or {}
        return Passage(id_, title, [text], {name: shown(value) for name, value in fields.items()})


def _of_file(reads: SmallReads, mapped_at: int, column: pa.StringArray) -> Characters:
    """Return how to read the characters of a column of the file that is mapped at an address."""
    characters = column.buffers()[2]
    first_at = characters.address - mapped_at if characters else 0
    return lambda first, end: reads.piece(0, first_at + first, end - first)


class GroupCache(RecentlyUsed[tuple[str, int], Texts]):
    """Row groups of texts by the digest of their segment and their number, shared by the open snapshots."""

    def __init__(self) -> None:
        super().__init__(KEPT_BYTES, lambda texts: texts.size_bytes)


class PassageTexts:
    """Id, title, text and extra columns of the rows of a snapshot's segments."""

    def __init__(
        self, entries: Mapping[int, SegmentEntry], file: Callable[[int], Path | BinaryIO], opened: OpenObjects
    ) -> None:
        """`file` opens the segment of a number."""
        self._entries, self._file, self._opened = entries, file, opened
        self._are_large = sum(entry.object.size_bytes for entry in entries.values()) > MAPPED_BYTES
        self._groups = opened.take("text groups", "", GroupCache)
        # no functools.cache: in a reference cycle, it would keep this object and its mapped files alive after their
        # last use
        self._unpacked: dict[int, Texts] = {}
        self._reads: dict[int, int] = dict.fromkeys(entries, 0)
        self._beside: ThreadPoolExecutor | None = None
        self._sent_beside = set[int]()

    def unpack_beside(self) -> None:
        """From now on, unpack texts in a thread of their own instead of letting a question wait."""
        self._beside = ThreadPoolExecutor(1, thread_name_prefix="texts")
        weakref.finalize(self, self._beside.shutdown, wait=False, cancel_futures=True).atexit = False

    def row(self, number: int, row: int) -> Passage:
        """Return a row of a segment as a passage of one text."""
        unpacked = self._table(number)
        if unpacked is not None:
            touch(0, len(TEXT_COLUMNS))
            return unpacked.row(row)
        group, place = divmod(row, ROW_GROUP_ROWS)
        read = partial(self._read_group, number, group)
        return self._groups.take((self._entries[number].object.sha256, group), read).row(place)

    def prepare(self, like: "PassageTexts") -> None:
        """Unpack now what `like` has unpacked, and the texts of segments that it does not have.

        So a question never waits longer for unpacking than it would with `like`.
        """
        there = {entry.object.sha256: number in like._unpacked for number, entry in like._entries.items()}
        for number, entry in self._entries.items():
            if there.get(entry.object.sha256, True):
                self._unpack(number)

    def _table(self, number: int) -> Texts | None:
        """Return the unpacked texts of a segment; None: they still have to be read by row groups."""
        found = self._unpacked.get(number)
        if found is not None:
            return found
        is_there = local_cache().find(texts_key(self._entries[number].object)) is not None
        if is_there or (self._beside is None and self._reads[number] >= READ_FIRST):
            return self._unpack(number)
        self._reads[number] += 1
        if self._beside is not None and number not in self._sent_beside:
            self._sent_beside.add(number)
            self._beside.submit(self._unpack_quietly, number)
        return None

    def _unpack_quietly(self, number: int) -> None:
        try:
            self._unpack(number)
            pa.default_memory_pool().release_unused()  # else Arrow keeps what unpacking took: 60 MB were measured
        except Exception as error:  # questions continue with row groups, whose errors name faults of the segment
            _log.warning("the texts of segment %d cannot be unpacked: %s", number, error)

    def _unpack(self, number: int) -> Texts:
        sha256 = self._entries[number].object.sha256
        found = self._unpacked[number] = self._opened.take("texts", sha256, lambda: self._map_unpacked(number))
        self._groups.drop(lambda key: key[0] == sha256)  # its texts are mapped now
        return found

    def _map_unpacked(self, number: int) -> Texts:
        path = local_cache().fetch(texts_key(self._entries[number].object), partial(self._write_unpacked, number))
        return Texts.of_file(path, is_read=self._are_large)

    def _write_unpacked(self, number: int, path: Path) -> None:
        file = self._file(number)
        schema = _schema_of(file)
        with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, schema) as writer:
            for table in iter_groups(file, schema.names):
                writer.write_table(table.cast(schema))
                touch(table.nbytes)

    def _read_group(self, number: int, group: int) -> Texts:
        file = self._file(number)
        with damage_explained(file):
            parquet = pq.ParquetFile(file, page_checksum_verification=True)
            names = [name for name in (*TEXT_COLUMNS, EXTRA) if name in parquet.schema_arrow.names]
            table = parquet.read_row_group(group, columns=names, use_threads=False)
        touch(table.nbytes)
        return Texts(table)


def _schema_of(file: Path | BinaryIO) -> pa.Schema:
    """Return the columns that are shown; the extra columns are those of the night that wrote the segment."""
    with damage_explained(file):
        stored = pq.read_schema(file)
    return pa.schema([stored.field(name) for name in (*TEXT_COLUMNS, EXTRA) if name in stored.names])


def texts_key(segment: ObjectRef) -> str:
    """Return the name of a segment's unpacked texts in this machine's cache."""
    return f"texts/{segment.sha256}.arrow"
