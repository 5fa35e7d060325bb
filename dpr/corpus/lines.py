"""Corpora of lines: TSV, BEIR's and other JSONL, plain or compressed.

A line ends at `\n` and nowhere else. It belongs to the slice that holds its first byte, so slices may cut anywhere.
Every line but the empty ones is one row. A line that cannot be used does not affect the lines around it.
"""

from collections.abc import Iterator
from typing import IO, Final

from dpr.corpus.json_rows import JSON_BYTES_PER_CHAR, json_parser, parsed_row
from dpr.corpus.rows import Row, Slice
from dpr.corpus.tsv import row_parser
from dpr.corpus.unpacking import open_slice
from dpr.recipe import CorpusConfig

_BUFFER_BYTES: Final = 2**20
_LINE_BYTES: Final = 16 * 2**20


def read_lines(slice_: Slice, corpus: CorpusConfig) -> Iterator[Row]:
    """Yield the rows of a slice of a `dpr-tsv`, `beir` or `jsonl` file; CorpusError if it is damaged."""
    parse = row_parser(slice_, corpus) if slice_.format == "dpr-tsv" else json_parser(slice_, corpus)
    max_bytes = _LINE_BYTES + JSON_BYTES_PER_CHAR * corpus.max_passage_chars
    path = slice_.path
    with open_slice(slice_) as file:
        lines = iter_lines(file, slice_.start, slice_.stop if slice_.compression is None else None, max_bytes)
        if slice_.header and slice_.start == 0:
            next(lines, None)
        for position, line, is_cut in lines:
            yield parsed_row((path, position), line, parse, corpus, is_cut=is_cut)


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
    """Read to the end of the line, and return the number of bytes read."""
    skipped = 0
    while piece := file.readline(_BUFFER_BYTES):
        skipped += len(piece)
        if piece.endswith(b"\n"):
            break
    return skipped
