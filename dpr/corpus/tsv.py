"""Records of TSV and CSV: fields between tabs or commas, quoted as Python's csv does it, or not at all."""

import csv
import re
from collections.abc import Callable, Iterator
from functools import partial
from typing import IO, Final, NamedTuple

from dpr.corpus.fields import partition_values, title_and_text
from dpr.corpus.json_rows import Parser, Parts, parsed_row
from dpr.corpus.rows import Row, Slice, UnusableRecordError, unusable_row
from dpr.corpus.signatures import UTF8_BOM
from dpr.corpus.unpacking import open_slice
from dpr.recipe import CorpusConfig

DELIMITERS: Final = (",", ";", "\t", "|")
"""Possible delimiters of CSV."""
SEPARATOR_LINE: Final = re.compile(rb'(?:\xef\xbb\xbf)?"?sep=([,;\t|])"?\r?\n')
"""The line that Excel writes before the header of CSV to name the delimiter."""
CSV_BYTES_PER_CHAR: Final = 4
"""The most bytes that a character takes; a quote, which is doubled, takes two."""
_SPARE_BYTES: Final = 2**20


class _Line(NamedTuple):
    start: int
    data: bytes
    """With its end, unless it was cut."""
    is_cut: bool


def split_tsv(line: str) -> list[str]:
    """Split one line, without its end, into the fields that DPR's own reader (Python's csv) finds.

    Raises UnusableRecordError if a quote is left open, since a field that goes on in the next line cannot be read in
    slices.
    """
    line = line.removesuffix("\r")
    if '"' not in line:
        return line.split("\t")
    _allow_fields_of(len(line))
    try:
        fields = next(csv.reader([line + "\n"], delimiter="\t"))
    except csv.Error as error:
        raise UnusableRecordError(f"broken quoting: {error}") from None
    if fields[-1].endswith("\n"):  # the quoted field includes the end of the line
        raise UnusableRecordError("broken quoting: a quote is not closed on its line")
    return fields


def split_plain(line: str) -> list[str]:
    """Split one line, without its end, at tabs; quotes are text."""
    return line.removesuffix("\r").split("\t")


def split_csv(record: str, delimiter: str) -> list[str]:
    """Split one record, which may be of several lines; UnusableRecordError if it is not quoted well."""
    _allow_fields_of(len(record))
    try:
        rows = list(csv.reader(_lines(record), strict=True, delimiter=delimiter))
    except csv.Error as error:
        raise UnusableRecordError(f"broken quoting: {error}") from None
    return rows[0] if rows else []


def has_quotes(corpus: CorpusConfig, *, header: bool) -> bool:
    """Return whether fields of TSV may be quoted: as the recipe says, or if the file has a header, as DPR's has."""
    return corpus.quoting == "csv" or (corpus.quoting == "auto" and header)


def _splitter(slice_: Slice, corpus: CorpusConfig) -> Callable[[str], list[str]]:
    if slice_.format == "csv":
        return partial(split_csv, delimiter=slice_.delimiter)
    return split_tsv if has_quotes(corpus, header=slice_.header) else split_plain


def row_parser(slice_: Slice, corpus: CorpusConfig) -> Parser:
    """Return a function that splits a record of TSV or CSV into fields; some may come from the file's folders."""
    split, columns, fields = _splitter(slice_, corpus), slice_.columns, slice_.fields
    partitions, count = partition_values(slice_.path), len(columns)

    def place(name: str | int | None) -> int:
        """Return the position of a field: among the columns, or behind them for a value that every record has."""
        if isinstance(name, int):
            return name
        return columns.index(name) if name in columns else count + constants.index(partitions.get(str(name)))

    constants = [None, *partitions.values()]
    at_id, at_title, at_text = place(fields.id), place(fields.title), place(fields.text)
    at_extra = [place(name) for name in corpus.columns.extra]
    has_more = fields.title_in_text or at_extra or max(at_id, at_title, at_text) >= count

    def parse(record: str) -> Parts:
        found = split(record)
        if len(found) != count:
            raise UnusableRecordError(f"{len(found)} columns instead of {count}")
        if not has_more:
            return (found[at_id], found[at_title], found[at_text]), ()
        values = [*found, *constants]
        title, text = title_and_text(values[at_text]) if fields.title_in_text else (values[at_title], values[at_text])
        return (values[at_id], title, text), tuple(values[at] for at in at_extra)

    return parse


def read_csv(slice_: Slice, corpus: CorpusConfig) -> Iterator[Row]:
    """Yield the rows of a `csv` file, whose positions are the offsets of its records.

    A record that is not quoted well is set aside, and reading goes on with the line after its first.
    """
    parse, path = row_parser(slice_, corpus), slice_.path
    max_bytes = CSV_BYTES_PER_CHAR * corpus.max_passage_chars + _SPARE_BYTES
    with open_slice(slice_) as file:
        records = (found for found in iter_records(file, max_bytes, slice_.delimiter) if not found[1].isspace())
        if slice_.header:
            next(records, None)
        for position, record, reason in records:
            if reason:
                yield unusable_row((path, position), record, reason)
            else:
                yield parsed_row((path, position), record.removesuffix(b"\n"), parse, corpus, is_cut=False)


def iter_records(file: IO[bytes], max_bytes: int, delimiter: str) -> Iterator[tuple[int, bytes, str]]:
    """Yield (offset, bytes, reason why it is unusable) of each record of CSV, which may have several lines.

    A record that is longer than `max_bytes`, or whose quotes are not closed or not doubled, gives its first line as one
    that cannot be used. The line by which Excel states the delimiter is not a record.
    """
    lines = _Lines(file, max_bytes)
    while lines.has_more():
        first = lines.take()
        if first.start == 0 and SEPARATOR_LINE.fullmatch(first.data):
            continue
        if first.is_cut:
            yield first.start, first.data, "longer than max_passage_chars"
            continue
        taken = [first]
        reason = _read_one(lines, taken, max_bytes, delimiter) if b'"' in first.data else ""
        if reason:
            lines.give_back(taken[1:])
            yield first.start, first.data, reason
        else:
            yield first.start, b"".join(line.data for line in taken), ""


def _read_one(lines: "_Lines", taken: list[_Line], max_bytes: int, delimiter: str) -> str:
    """Take as many further lines as the record needs; return why it cannot be one, or an empty reason."""
    first = taken[0]

    def texts() -> Iterator[str]:
        yield (first.data if first.start else first.data.removeprefix(UTF8_BOM)).decode("utf-8", "replace")
        held_bytes = len(first.data)
        while held_bytes <= max_bytes and lines.has_more():
            line = lines.take()
            taken.append(line)
            held_bytes += max_bytes if line.is_cut else len(line.data)
            yield line.data.decode("utf-8", "replace")

    _allow_fields_of(2 * max_bytes + _SPARE_BYTES)
    try:
        next(csv.reader(texts(), strict=True, delimiter=delimiter))
    except csv.Error as error:
        return f"broken quoting: {error}"
    return ""


class _Lines:
    """Lines of a file with their offsets; lines can be put back, to be read again."""

    def __init__(self, file: IO[bytes], max_bytes: int) -> None:
        self._file, self._max_bytes = file, max_bytes
        self._next: list[_Line] = []
        """The last one is taken first."""
        self._offset = 0
        """Offset of the first byte that was not read yet."""

    def has_more(self) -> bool:
        if not self._next and (data := self._file.readline(self._max_bytes + 1)):
            start = self._offset
            self._offset += len(data)
            is_cut = len(data) > self._max_bytes and not data.endswith(b"\n")
            if is_cut:
                while (rest := self._file.readline(_SPARE_BYTES)) and not rest.endswith(b"\n"):
                    self._offset += len(rest)
                self._offset += len(rest)
            self._next.append(_Line(start, data, is_cut))
        return bool(self._next)

    def take(self) -> _Line:
        """Return the next line, if there are more; the rest of one that was cut is skipped."""
        return self._next.pop()

    def give_back(self, lines: list[_Line]) -> None:
        """Put lines back that were taken last."""
        self._next += reversed(lines)


def _lines(text: str) -> Iterator[str]:
    """Yield the lines of a text with their ends; only a line feed ends one."""
    *whole, last = text.split("\n")
    yield from (f"{line}\n" for line in whole)
    if last:
        yield last


def _allow_fields_of(chars: int) -> None:
    if chars > csv.field_size_limit():
        csv.field_size_limit(chars)
