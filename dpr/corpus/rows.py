"""What planning yields (slices) and what reading a slice yields: one `Row` per input row, usable or not."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Final, Literal, NamedTuple, Self

MAX_RAW_BYTES: Final = 64 * 1024

ReadFormat = Literal["dpr-tsv", "beir", "jsonl", "parquet", "documents", "python-docs"]


@dataclass(frozen=True)
class InputFile:
    """One file as it was when the corpus was planned."""

    path: str
    """Absolute path or URL."""
    size_bytes: int
    identity: str
    """Size with modification time (local files) or with ETag (object stores): changes whenever the file does."""


@dataclass(frozen=True)
class Slice:
    """One unit of scanning: plain values that name what to read and pin what it was when it was planned."""

    path: str
    """The file; for `documents` the folder that ids are relative to."""
    format: ReadFormat
    start: int = 0
    stop: int = 0
    """Bytes [start, stop) of a line file, row groups [start, stop) of Parquet; the whole file if it is gzipped."""
    identity: str = ""
    """`InputFile.identity` of the file; for `python-docs` the Python version; empty for `documents`."""
    gzipped: bool = False
    columns: tuple[str, ...] = ()
    """The header of a `dpr-tsv` file."""
    files: tuple[InputFile, ...] = ()
    """The files of a `documents` slice."""

    def to_json(self) -> dict[str, Any]:
        """The slice as JSON values, of which `from_json` makes an equal one."""
        return {**asdict(self), "columns": list(self.columns), "files": [asdict(file) for file in self.files]}

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> Self:
        """The slice that `to_json` described."""
        files = tuple(InputFile(**file) for file in document["files"])
        return cls(**{**document, "columns": tuple(document["columns"]), "files": files})


class Passage(NamedTuple):
    """One passage as the user named it. (Tuples: half the price of frozen dataclasses, and there are millions.)"""

    id: str
    title: str
    text: str


Stored = bytes | tuple[tuple[str, ...], tuple[object, ...]]
"""Bytes, or the names and values of the mapped columns of a Parquet row."""


class Row(NamedTuple):
    """One row of the input, with its passage or with the reason why it has none."""

    position: int
    """Byte offset of the line (in .gz: of the unpacked text), row number in Parquet, running number otherwise."""
    stored: Stored
    """The row as it stands in the input."""
    passage: Passage | None
    reason: str
    """Empty, or why the row cannot be used. Without values, so that rows can be counted by it."""
    source: str
    """File that holds the row."""

    @property
    def raw(self) -> bytes:
        """The row as it stands in the input, as JSON if it is a Parquet row, at most 64 KiB of it."""
        if isinstance(self.stored, bytes):
            return self.stored[:MAX_RAW_BYTES]
        # made only when asked for, since it takes longer than everything else; bad UTF-8 comes out as it went in
        row = dict(zip(*self.stored, strict=True))
        return json.dumps(row, ensure_ascii=False).encode("utf-8", "surrogateescape")[:MAX_RAW_BYTES]


def checked_row(
    place: tuple[str, int],
    stored: Stored,
    fields: tuple[object, object, object],
    max_chars: int,
) -> Row:
    """The row of `fields` (id, title, text) at `place` (source, position): checked, and with a reason if it fails.

    An integer id becomes a string, a missing title an empty one; nothing else is converted.
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
    """The row at `place` (source, position) that has no passage because of `reason`."""
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
    if not (text.isascii() and title.isascii() and passage_id.isascii()) and not _has_utf8_form(
        passage_id + title + text
    ):
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


def _has_utf8_form(field: str) -> bool:
    # JSON can spell half of a surrogate pair (\ud800), which no encoder, hash or Parquet file accepts later on
    try:
        field.encode()
    except UnicodeEncodeError:
        return False
    return True
