"""The results of planning a corpus (slices) and of reading a slice: one `Row` per input row, usable or not."""

import json
from collections.abc import Sequence
from decimal import Decimal
from typing import Final, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from dpr.corpus.extra_values import UnusableValueError, plain_text, usable_values
from dpr.corpus.signatures import Compression
from dpr.fingerprint import fingerprint
from dpr.formats.extra import ExtraValue
from dpr.formats.records import Document
from dpr.json_kinds import kind_of
from dpr.recipe import CorpusConfig, EncoderConfig

MAX_RAW_BYTES: Final = 64 * 1024
WINDOW_BITS: Final = 20
"""Bits of a position in a slice whose long texts are split that hold the number of the window."""
_FIELDS_OF_PLANNING: Final = {"path", "slice_bytes", "rescan", "strict", "long"}
"""Fields of the corpus that decide which slices there are and when they are read, and not what one slice holds; `long`
is in the slice itself."""

ReadFormat = Literal["dpr-tsv", "csv", "beir", "jsonl", "json", "parquet", "arrow", "lance", "documents"]


class UnusableRecordError(Exception):
    """A record that cannot be split into fields; the message is the reason."""


class Fields(Document):
    """The fields of a file that make up a passage: names, or positions in TSV and CSV."""

    id: str | int = "id"
    title: str | int | None = "title"
    text: str | int = "text"
    title_in_text: bool = False
    """Whether the first line of the text is the title, as in pyserini's `contents`."""


class InputFile(Document):
    """One file as it was when the corpus was planned."""

    path: str
    """Absolute path or URL."""
    size_bytes: int
    identity: str
    """Size with modification time (local files) or with ETag (object stores): changes whenever the file does."""


class LeftOut(Document):
    """A file of a folder that is not read."""

    path: str
    reason: str


class FileKind(Document):
    """What planning found in a file by opening it; valid as long as the file's identity stays the same."""

    format: ReadFormat | Literal["empty", "unreadable"]
    """`empty`: a part without rows."""
    compression: Compression | None = None
    fields: Fields = Fields()
    columns: tuple[str, ...] = ()
    """The names of the columns of TSV and CSV, where they are known."""
    header: bool = False
    """Whether the first line of TSV or CSV holds names."""
    delimiter: str = ""
    """The delimiter of CSV."""
    missing_extra: tuple[str, ...] = ()
    """Extra columns of the recipe that the file does not have."""
    reason: str = ""
    """Why a file is empty or unreadable."""
    row_group_rows: tuple[int, ...] = ()
    """Rows of each row group of a Parquet file."""
    row_group_bytes: tuple[int, ...] = ()
    """Unpacked size of each row group of a Parquet file."""


class Windows(Document):
    """The encoder by whose token limit long texts are split."""

    encoder: EncoderConfig
    encoder_id: str


class Slice(Document):
    """One unit of scanning: names what to read, and pins the state of the file when the corpus was planned."""

    path: str
    """The file; for `documents` the folder that ids are relative to; for `lance` the table."""
    format: ReadFormat
    start: int = 0
    stop: int = 0
    """Bytes [start, stop) of a line file, row groups [start, stop) of Parquet, the fragment `start` of Lance; the whole
    file of formats that can only be read from the beginning, and if it is compressed."""
    size_bytes: int = 0
    """How many bytes of input the slice reads; of a Parquet file its row groups' share of the file."""
    identity: str = ""
    """`InputFile.identity` of the file; empty for `documents`, whose files have their own."""
    compression: Compression | None = None
    fields: Fields = Fields()
    columns: tuple[str, ...] = ()
    """The names of the columns of TSV and CSV."""
    header: bool = False
    delimiter: str = ""
    files: tuple[InputFile, ...] = ()
    """The files of a `documents` slice."""
    windows: Windows | None = None
    """How long texts are split into windows, each of which is a row; None: they stay whole."""

    def slice_id(self, corpus: CorpusConfig) -> str:
        """Return a fingerprint of everything that decides which rows this slice yields.

        It covers the slice with the identity of its files, and how the recipe reads them: all fields of the corpus but
        `path`, `slice_bytes`, `rescan` and `strict`. So two slices with the same id yield the same rows, on any night.
        """
        what = self.model_dump(mode="json", exclude={"size_bytes", "windows"})
        if self.windows is not None:
            what["windows"] = self.windows.encoder_id
        return fingerprint({"slice": what, "corpus": corpus.model_dump(mode="json", exclude=_FIELDS_OF_PLANNING)})

    def input_position(self, position: int) -> int:
        """Return the position of a row in the input: windows of a text have positions of their own."""
        return position if self.windows is None else position >> WINDOW_BITS

    def window_numbers(self, positions_N: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Return which window of its text each of N rows is, counted from 0; 0 where texts stay whole."""
        return positions_N & ((1 << WINDOW_BITS) - 1) if self.windows is not None else np.zeros_like(positions_N)


class Passage(NamedTuple):
    """One passage as it is in the corpus. A tuple, since there are millions and a dataclass takes twice as long."""

    id: str
    title: str
    text: str


Stored = bytes | tuple[tuple[str, ...], tuple[object, ...]]
"""Bytes, or the names and values of the mapped columns of a Parquet row."""


class Row(NamedTuple):
    """One row of the input, with its passage or with the reason why it has none."""

    position: int
    """Byte offset of the line (in .gz: of the unpacked text), row number in Parquet, number in the slice otherwise.
    Where long texts are split: 2^20 times that, and the number of the window."""
    stored: Stored
    """The row as it is in the input."""
    passage: Passage | None
    reason: str
    """Why the row cannot be used; empty if it can. It holds no values, so that rows can be counted by reason."""
    source: str
    """File that holds the row."""
    extra: tuple[ExtraValue, ...] = ()
    """The extra columns of the recipe, in its order."""

    @property
    def raw(self) -> bytes:
        """Return the first 64 KiB of the row as it stands in the input; a Parquet row is written as JSON."""
        if isinstance(self.stored, bytes):
            return self.stored[:MAX_RAW_BYTES]
        # the JSON is made here, and not for each row, since it takes longer than reading; bad UTF-8 stays as it was
        row = dict(zip(*self.stored, strict=True))
        return json.dumps(row, ensure_ascii=False, default=str).encode("utf-8", "surrogateescape")[:MAX_RAW_BYTES]


def checked_row(
    place: tuple[str, int],
    stored: Stored,
    fields: tuple[object, object, object],
    corpus: CorpusConfig,
    extra: Sequence[object] = (),
) -> Row:
    """Check the `fields` (id, title, text) and extra values at `place` (source, position) and return their row.

    The row has a reason if it cannot be used. An integer id and a title that is a number become strings, a missing
    title an empty one, and a list of texts one text if the recipe says how to join them; nothing else is converted.
    """
    passage_id, title, text = fields
    if type(passage_id) is int:
        passage_id = str(passage_id)
    if title is None or title != title:  # pandas writes NaN for a missing value
        title = ""
    elif type(title) in (int, float, Decimal):
        title = plain_text(title)
    if isinstance(text, list) and corpus.columns.join is not None and all(isinstance(part, str) for part in text):
        text = corpus.columns.join.join(text)
    if not (isinstance(passage_id, str) and isinstance(title, str) and isinstance(text, str)):
        return unusable_row(place, stored, _type_problem(passage_id, title, text))
    reason = _text_problem(passage_id, title, text, corpus.max_passage_chars)
    if reason:
        return unusable_row(place, stored, reason)
    try:
        values = usable_values(corpus.columns.extra, extra) if extra else ()
    except UnusableValueError as error:
        return unusable_row(place, stored, str(error))
    return Row(place[1], stored, Passage(passage_id, title, text), "", place[0], values)


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
        return f"id is {kind_of(passage_id)}, not a string or an integer"
    if text is None:
        return "no text"
    name, value = ("title", title) if isinstance(text, str) else ("text", text)
    return f"{name} is {kind_of(value)}, not a string"


def is_utf8(text: str) -> bool:
    """Return whether `text` can be written as UTF-8.

    Half of a surrogate pair cannot. JSON can spell one (`\\ud800`), and a file name that is not UTF-8 becomes a string
    that holds some.
    """
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
