"""Folders of documents: each is split into passages of 100 words or so (paper, section 4.1)."""

import re
from collections.abc import Iterable, Iterator
from itertools import chain
from pathlib import PurePosixPath
from typing import Final

from dpr.corpus.fields import partition_values
from dpr.corpus.input_files import open_unchanged, relative_path
from dpr.corpus.rich_documents import RICH_SUFFIXES, rich_text
from dpr.corpus.rows import InputFile, Row, Slice, UnusableRecordError, checked_row, unusable_row
from dpr.corpus.signatures import UTF8_BOM
from dpr.corpus.split import iter_passages
from dpr.recipe import CorpusConfig

MAX_DOCUMENT_BYTES: Final = 64 * 2**20
"""Larger documents are not read, since a document is held in memory while it is split."""

_HEADING: Final = re.compile(r"#{1,6}\s+(.*?)(\s+#+)?\s*$")
_FENCE: Final = re.compile(r"\s*(```|~~~)")


def document_slices(root: str, files: Iterable[InputFile], slice_bytes: int) -> list[Slice]:
    """Group the files below `root`, in their order, into slices of about `slice_bytes` each."""
    groups: list[list[InputFile]] = []
    held_bytes = 0
    for file in files:
        if not groups or held_bytes + file.size_bytes > slice_bytes:
            groups.append([])
            held_bytes = 0
        groups[-1].append(file)
        held_bytes += file.size_bytes
    return [
        Slice(
            path=root,
            format="documents",
            size_bytes=sum(file.size_bytes for file in group),
            files=tuple(group),
        )
        for group in groups
    ]


def read_documents(slice_: Slice, corpus: CorpusConfig) -> Iterator[Row]:
    """Yield one row for each passage, and one for each document that cannot be used at all.

    The id is the file's path below the slice's folder, `#` and the number of the passage. The title is that of a
    page, the first heading of a .md file, or the file's name without its suffix.
    """
    position = 0
    for file in slice_.files:
        for row in _document_rows(slice_.path, file, position, corpus):
            yield row
            position += 1


def _document_rows(root: str, file: InputFile, position: int, corpus: CorpusConfig) -> Iterator[Row]:
    place = file.path, position
    with open_unchanged(file.path, file.identity) as stream:
        data = stream.read(MAX_DOCUMENT_BYTES + 1)
    if len(data) > MAX_DOCUMENT_BYTES:
        yield unusable_row(place, data[:MAX_DOCUMENT_BYTES], f"document of over {MAX_DOCUMENT_BYTES >> 20} MiB")
        return
    name = relative_path(file.path, root)
    try:
        title, text = _title_and_text(name, data)
    except UnusableRecordError as error:
        yield unusable_row(place, data, str(error))
        return
    partitions = partition_values(file.path)
    extra = [partitions.get(name) for name in corpus.columns.extra]
    words = chain.from_iterable(line.split() for line in text.split("\n"))
    for number, passage in enumerate(iter_passages(words, corpus.passage_words, corpus.overlap_words)):
        fields = f"{name}#{number}", title, passage
        yield checked_row((file.path, position + number), passage.encode(), fields, corpus, extra)


def _title_and_text(name: str, data: bytes) -> tuple[str, str]:
    """Return title and text of a document; UnusableRecordError if it has no text that can be read."""
    if name.lower().endswith(RICH_SUFFIXES):
        title, text = rich_text(name, data)
    else:
        try:
            title, text = "", data.removeprefix(UTF8_BOM).decode()
        except UnicodeDecodeError:
            raise UnusableRecordError("bad UTF-8") from None
    if not text or text.isspace():
        raise UnusableRecordError("no text")
    return title or document_title(name, text), text


def document_title(name: str, text: str) -> str:
    """Return the first heading (`# …`) of a .md document outside fenced code, or else the name without its suffix."""
    path = PurePosixPath(name)
    in_code = False
    for line in text.split("\n") if path.suffix.lower() == ".md" else ():
        if _FENCE.match(line):
            in_code = not in_code
        elif not in_code and (heading := _HEADING.match(line)) and heading[1]:
            return " ".join(heading[1].split())
    return path.stem
