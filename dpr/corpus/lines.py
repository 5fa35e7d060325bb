"""Corpora of lines: DPR's TSV, BEIR's and other JSONL, plain or gzipped.

A line ends at `\\n` and nowhere else. It belongs to the slice that holds its first byte, so slices may cut anywhere.
Every line but the empty ones is one row. A line that cannot be used does not affect the lines around it.
"""

import gzip
import io
import json
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import IO, Any, Final, cast

from dpr.corpus.detect import BEIR_COLUMNS, UTF8_BOM
from dpr.corpus.input_files import open_unchanged
from dpr.corpus.rows import Row, Slice, checked_row, unusable_row
from dpr.corpus.tsv import TSV_COLUMNS, UnusableLineError, split_tsv
from dpr.errors import CorpusError
from dpr.recipe import Columns, CorpusConfig

Fields = tuple[object, object, object]
"""Id, title and text, as they stand in a line."""

_BUFFER_BYTES: Final = 2**20
_LINE_BYTES: Final = 16 * 2**20
_JSON_SPACE: Final = " \t\r"
_JSON_BYTES_PER_CHAR: Final = 12
"""The most bytes that a character takes: a surrogate pair, written as two \\uXXXX escapes."""


def read_lines(slice_: Slice, corpus: CorpusConfig) -> Iterator[Row]:
    """Yield the rows of a slice of a `dpr-tsv`, `beir` or `jsonl` file; CorpusError if it is damaged gzip."""
    parse = _parser(slice_, corpus)
    max_bytes = _LINE_BYTES + _JSON_BYTES_PER_CHAR * corpus.max_passage_chars
    path, max_chars = slice_.path, corpus.max_passage_chars
    with _opened(slice_) as file:
        lines = iter_lines(file, slice_.start, None if slice_.gzipped else slice_.stop, max_bytes)
        if slice_.format == "dpr-tsv" and slice_.start == 0:
            next(lines, None)
        for position, line, is_cut in lines:
            if is_cut:
                yield unusable_row((path, position), line, "longer than max_passage_chars")
                continue
            try:
                text = (line if position else line.removeprefix(UTF8_BOM)).decode()
                fields = parse(text)
            except UnicodeDecodeError:
                yield unusable_row((path, position), line, "bad UTF-8")
            except UnusableLineError as error:
                yield unusable_row((path, position), line, str(error))
            else:
                yield checked_row((path, position), line, fields, max_chars)


def iter_lines(file: IO[bytes], start: int, stop: int | None, max_bytes: int) -> Iterator[tuple[int, bytes, bool]]:
    """Yield (offset, line without its `\\n`, whether it was cut) for each non-empty line that begins in [start, stop).

    A longer line is cut to `max_bytes`, and the rest of it is skipped without being held in memory.
    """
    position = start
    if start:
        file.seek(start - 1)  # if that byte ends a line, only it is skipped
        position += _skip_line(file) - 1
    while stop is None or position < stop:
        line = file.readline(max_bytes + 1)
        if not line:
            return
        next_position = position + len(line)
        is_cut = len(line) > max_bytes and not line.endswith(b"\n")
        if is_cut:
            next_position += _skip_line(file)
            line = line[:max_bytes]
        elif line.endswith(b"\n"):
            line = line[:-1]
        if line and not line.isspace():
            yield position, line, is_cut
        position = next_position


def _skip_line(file: IO[bytes]) -> int:
    """Read to the end of the line, and return how many bytes that were."""
    skipped = 0
    while piece := file.readline(_BUFFER_BYTES):
        skipped += len(piece)
        if piece.endswith(b"\n"):
            break
    return skipped


@contextmanager
def _opened(slice_: Slice) -> Iterator[IO[bytes]]:
    with open_unchanged(slice_.path, slice_.identity) as file:
        if not slice_.gzipped:
            # readline of a remote fsspec file is a slow loop in Python
            yield file if isinstance(file, io.BufferedReader) else _buffered(file)
            return
        try:
            with gzip.open(file) as unpacked:
                yield _buffered(unpacked)
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise CorpusError(f"corpus file {slice_.path} is damaged or cut short ({error}); fetch it again") from error


def _buffered(file: object) -> IO[bytes]:
    return io.BufferedReader(cast(io.RawIOBase, file), _BUFFER_BYTES)


def _parser(slice_: Slice, corpus: CorpusConfig) -> Callable[[str], Fields]:
    if slice_.format == "dpr-tsv":
        return _tsv_parser(slice_.columns)
    return _json_parser(BEIR_COLUMNS if slice_.format == "beir" else corpus.columns)


def _json_parser(columns: Columns) -> Callable[[str], Fields]:
    id_name, title_name, text_name = columns.id, columns.title, columns.text
    decode: Callable[[str], tuple[Any, int]] = json.JSONDecoder().raw_decode

    def parse(line: str) -> Fields:
        line = line.strip(_JSON_SPACE)
        try:
            document, end = decode(line)  # json.loads spends a third of its time on white space
        except (ValueError, RecursionError):  # ValueError: bad JSON, or an integer of thousands of digits
            raise UnusableLineError("broken JSON") from None
        if end != len(line):
            raise UnusableLineError("broken JSON")
        if not isinstance(document, dict):
            raise UnusableLineError(f"a JSON {type(document).__name__}, not an object")
        title = None if title_name is None else document.get(title_name)
        return document.get(id_name), title, document.get(text_name)

    return parse


def _tsv_parser(columns: tuple[str, ...]) -> Callable[[str], Fields]:
    at_id, at_text, at_title = (columns.index(name) for name in TSV_COLUMNS)

    def parse(line: str) -> Fields:
        fields = split_tsv(line)
        if len(fields) != len(columns):
            raise UnusableLineError(f"{len(fields)} columns instead of {len(columns)}")
        return fields[at_id], fields[at_title], fields[at_text]

    return parse
