"""What planning a corpus yields (slices) and what reading a slice yields: one `Row` per input row, usable or not."""

import json
from typing import Final, Literal, NamedTuple

from dpr.fingerprint import fingerprint
from dpr.formats.records import Document
from dpr.recipe import CorpusConfig

MAX_RAW_BYTES: Final = 64 * 1024
_FIELDS_OF_PLANNING: Final = {"path", "slice_bytes", "rescan"}
"""Fields of the corpus that decide which slices there are and when they are read, and not what one slice holds."""

ReadFormat = Literal["dpr-tsv", "beir", "jsonl", "parquet", "documents"]


class InputFile(Document):
    """One file as it was when the corpus was planned."""

    path: str
    """Absolute path or URL."""
    size_bytes: int
    identity: str
    """Size with modification time (local files) or with ETag (object stores): changes whenever the file does."""


class FileKind(Document):
    """What planning found out about a file by opening it; it holds as long as the file's identity stays the same."""

    format: ReadFormat
    gzipped: bool = False
    columns: tuple[str, ...] = ()
    """The header of a `dpr-tsv` file."""
    row_group_rows: tuple[int, ...] = ()
    """Rows of each row group of a Parquet file."""
    row_group_bytes: tuple[int, ...] = ()
    """Unpacked size of each row group of a Parquet file."""


class Slice(Document):
    """One unit of scanning: names what to read, and pins the state of the file when the corpus was planned."""

    path: str
    """The file; for `documents` the folder that ids are relative to."""
    format: ReadFormat
    start: int = 0
    stop: int = 0
    """Bytes [start, stop) of a line file, row groups [start, stop) of Parquet; the whole file if it is gzipped."""
    size_bytes: int = 0
    """How many bytes of input the slice reads; of a Parquet file its row groups' share of the file."""
    identity: str = ""
    """`InputFile.identity` of the file; empty for `documents`, whose files have their own."""
    gzipped: bool = False
    columns: tuple[str, ...] = ()
    """The header of a `dpr-tsv` file."""
    files: tuple[InputFile, ...] = ()
    """The files of a `documents` slice."""

    def slice_id(self, corpus: CorpusConfig) -> str:
        """Return a fingerprint of everything that decides which rows this slice yields.

        It covers the slice with the identity of its files, and how the recipe reads them: all fields of the corpus but
        `path`, `slice_bytes` and `rescan`. So two slices with the same id yield the same rows, on any night.
        """
        what = self.model_dump(mode="json", exclude={"size_bytes"})
        return fingerprint({"slice": what, "corpus": corpus.model_dump(mode="json", exclude=_FIELDS_OF_PLANNING)})


class Passage(NamedTuple):
    """One passage as it stands in the corpus. A tuple, since there are millions and a dataclass takes twice as long."""

    id: str
    title: str
    text: str


Stored = bytes | tuple[tuple[str, ...], tuple[object, ...]]
"""Bytes, or the names and values of the mapped columns of a Parquet row."""


class Row(NamedTuple):
    """One row of the input, with its passage or with the reason why it has none."""

    position: int
    """Byte offset of the line (in .gz: of the unpacked text), row number in Parquet, number in the slice otherwise."""
    stored: Stored
    """The row as it stands in the input."""
    passage: Passage | None
    reason: str
    """Why the row cannot be used; empty if it can. It holds no values, so that rows can be counted by reason."""
    source: str
    """File that holds the row."""

    @property
    def raw(self) -> bytes:
        """Return the first 64 KiB of the row as it stands in the input; a Parquet row is written as JSON."""
        if isinstance(self.stored, bytes):
            return self.stored[:MAX_RAW_BYTES]
        # the JSON is made here, and not for each row, since it takes longer than reading; bad UTF-8 stays as it was
        row = dict(zip(*self.stored, strict=True))
        return json.dumps(row, ensure_ascii=False).encode("utf-8", "surrogateescape")[:MAX_RAW_BYTES]


def checked_row(
    place: tuple[str, int],
    stored: Stored,
    fields: tuple[object, object, object],
    max_chars: int,
) -> Row:
    """Check the `fields` (id, title, text) at `place` (source, position) and return their row.

    The row has a reason if it cannot be used. An integer id becomes a string and a missing title an empty one; nothing
    else is converted.
    """
    passage_id, title, text = fields
    if type(passage_id) is int:
        passage_id = str(passage_id)
    if title is None:
        title = ""
    if not (isinstance(passage_id, str) and isinstance(title, str) and isinstance(text, str)):
        return unusable_row(place, stored, _type_problem(passage_id, title, text))
    reason = _text_problem(passage_id, title, text, max_chars)
    if reason:
        return unusable_row(place, stored, reason)
    return Row(place[1], stored, Passage(passage_id, title, text), "", place[0])


def unusable_row(place: tuple[str, int], stored: Stored, reason: str) -> Row:
    """Return the row at `place` (source, position) that has no passage because of `reason`."""
    return Row(place[1], stored, None, reason, place[0])


def _text_problem(passage_id: str, title: str, text: str, max_chars: int) -> str:
    if not passage_id or passage_id.isspace():
        return "no id"
    if not text or text.isspace():
        return "no text"
    if len(passage_id) + len(title) + len(text) > max_chars:
        return "longer than max_passage_chars"
    if "\0" in text or "\0" in title or "\0" in passage_id:
        return "NUL characters"
    if not (text.isascii() and title.isascii() and passage_id.isascii()) and not is_utf8(passage_id + title + text):
        return "half of a surrogate pair"
    return ""


def _type_problem(passage_id: object, title: object, text: object) -> str:
    if passage_id is None:
        return "no id"
    if not isinstance(passage_id, str):
        return f"id is a {type(passage_id).__name__}, not a string or an integer"
    if text is None:
        return "no text"
    name, value = ("title", title) if isinstance(text, str) else ("text", text)
    return f"{name} is a {type(value).__name__}, not a string"


def is_utf8(text: str) -> bool:
    """Tell whether `text` can be written as UTF-8.

    Half of a surrogate pair cannot. JSON can spell one (`\\ud800`), and a file name that is not UTF-8 becomes a string
    that holds some.
    """
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
