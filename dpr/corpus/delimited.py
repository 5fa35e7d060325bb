"""The layout of TSV and CSV files: whether they have a header, and the role of each column."""

import io
import re
from collections import Counter
from collections.abc import Sequence
from itertools import islice
from typing import Final

from dpr.corpus.fields import LAYOUTS, fields_of, has_default_names, missing_extra, partition_values
from dpr.corpus.rows import Fields, FileKind, InputFile, UnusableRecordError
from dpr.corpus.signatures import COMPRESSED_SUFFIXES, UTF8_BOM, Compression
from dpr.corpus.tsv import DELIMITERS, SEPARATOR_LINE, iter_records, split_csv, split_plain, split_tsv
from dpr.errors import OtherFileError
from dpr.recipe import Columns, CorpusConfig

TSV_COLUMNS: Final = ("id", "text", "title")
"""DPR's columns, in its order; without the last one they are MS MARCO's."""

_SAMPLE_ROWS: Final = 100
_NAME: Final = re.compile(r"[^\W\d][^\t\n]{0,39}")
"""A possible name of a column: it begins with a letter, and is short."""


def is_delimited(path: str, lines: Sequence[str]) -> bool | None:
    """Return whether name and first lines show a file to be CSV (True), TSV (False), or neither (None).

    A name says it, unless the lines are JSON objects. Otherwise the first line must be a header, or all lines must have
    two or three columns between tabs.
    """
    if not lines or lines[0].lstrip()[:1] == "{":
        return None
    name = path.lower()
    for suffix in COMPRESSED_SUFFIXES:
        name = name.removesuffix(suffix)
    if name.endswith((".csv", ".tsv")):
        return name.endswith(".csv")
    if _has_names(_split(lines[0], None)):
        return False
    if lines[0].lstrip()[:1] != "[" and {line.count("\t") for line in lines} in ({1}, {2}):
        return False
    return True if any(_has_names(_split(lines[0], delimiter)) for delimiter in DELIMITERS) else None


def delimited_kind(
    file: InputFile, corpus: CorpusConfig, head: bytes, compression: Compression | None, *, is_csv: bool, is_whole: bool
) -> FileKind:
    """Find the columns of a file from its beginning; CorpusError if they are not those that the recipe names."""
    delimiter = _delimiter(head, corpus) if is_csv else None
    rows = _first_rows(head, delimiter, is_whole=is_whole)
    if not rows:
        raise OtherFileError(
            f"corpus file {file.path} has no record that is {'CSV' if is_csv else 'TSV'}; look for a quote that is not "
            "closed, and for lines that end in a carriage return alone"
        )
    header = _is_header(rows, corpus)
    if header and is_whole and len(rows) == 1:
        return FileKind(format="empty", reason="it holds a header and no rows")
    columns = tuple(corpus.names or (rows[0] if header else _default_names(file.path, corpus, rows, delimiter)))
    try:
        fields = _fields(file.path, corpus, columns)
    except OtherFileError as error:
        doubt = ", or corpus.names if the file has no header line" if header else ""
        raise OtherFileError(f"{error}{doubt}", error.columns) from error
    return FileKind(
        format="csv" if is_csv else "dpr-tsv",
        compression=compression,
        fields=fields,
        columns=columns,
        header=header,
        delimiter=delimiter or "",
        missing_extra=missing_extra(file.path, corpus, columns),
    )


def _delimiter(head: bytes, corpus: CorpusConfig) -> str:
    """Return the delimiter of CSV: the one that its first line states, else the one that yields the expected names.

    If neither decides, it is the first that occurs.
    """
    if stated := SEPARATOR_LINE.match(head):
        return stated[1].decode()
    first = head.removeprefix(UTF8_BOM).lstrip().partition(b"\n")[0].decode("utf-8", "replace").removesuffix("\r")
    for delimiter in DELIMITERS:
        if _has_names(fields := _split(first, delimiter)) or _names_columns(fields, corpus):
            return delimiter
    outside = re.sub('"[^"]*"', "", first)
    there = [delimiter for delimiter in DELIMITERS if delimiter in outside]
    return min(there, key=outside.index, default=DELIMITERS[0])


def _first_rows(head: bytes, delimiter: str | None, *, is_whole: bool) -> list[list[str]]:
    """Return the fields of the first records; the last of a longer file is left out, since it may be incomplete."""
    if delimiter:
        found = islice(iter_records(io.BytesIO(head), len(head), delimiter), _SAMPLE_ROWS)
        records = [record for _, record, reason in found if not reason]
    else:
        records = head.split(b"\n", _SAMPLE_ROWS)[:_SAMPLE_ROWS]
    if not is_whole and len(records) < _SAMPLE_ROWS:
        del records[-1:]
    lines = [record.removeprefix(UTF8_BOM).removesuffix(b"\n").decode("utf-8", "replace") for record in records]
    return [fields for line in lines if line.strip() and (fields := _split(line, delimiter))]


def _split(line: str, delimiter: str | None) -> list[str]:
    """Split a record of CSV with that delimiter, or a line of TSV (None)."""
    try:
        return split_csv(line, delimiter) if delimiter else split_tsv(line)
    except UnusableRecordError:
        return [] if delimiter else split_plain(line)


def _is_header(rows: Sequence[list[str]], corpus: CorpusConfig) -> bool:
    """Return whether the first row holds names: those that are looked for, or words unlike the values below."""
    first = rows[0]
    if corpus.names is not None:
        return first == corpus.names
    if _has_names(first) or _names_columns(first, corpus):
        return True
    looks_like_names = all(_NAME.fullmatch(value) for value in first) and len(set(first)) == len(first)
    columns = list(zip(*(row for row in rows[1:] if len(row) == len(first)), strict=True))
    return looks_like_names and any(map(_is_other, first, columns))


def _is_other(name: str, values: Sequence[str]) -> bool:
    """Return whether most values of a column are much longer than its name, or have digits while the name has none."""
    longer = sum(len(value) > 3 * len(name) for value in values)
    numbered = sum(any(map(str.isdigit, value)) for value in values)
    return 2 * longer > len(values) or (2 * numbered > len(values) and not any(map(str.isdigit, name)))


def _names_columns(first: Sequence[str], corpus: CorpusConfig) -> bool:
    return {str(corpus.columns.id), str(corpus.columns.text)} <= set(first)


def _has_names(first: Sequence[str]) -> bool:
    """Return whether a row holds the names of one of the known layouts."""
    return any({fields.id, fields.text} <= set(first) for fields in (Fields(), *LAYOUTS))


def _default_names(
    path: str, corpus: CorpusConfig, rows: Sequence[list[str]], delimiter: str | None
) -> tuple[str, ...]:
    """Return the names of the columns of a file without a header, whose number most rows agree on."""
    ((count, _),) = Counter(map(len, rows)).most_common(1)
    if any(isinstance(name, int) for name in (corpus.columns.id, corpus.columns.title, corpus.columns.text)):
        return tuple(map(str, range(count)))
    if has_default_names(corpus.columns) and 1 < count <= len(TSV_COLUMNS):
        return TSV_COLUMNS[:count]
    separator, first = (repr(delimiter) if delimiter else "tabs"), [value[:40] for value in rows[0]]
    raise OtherFileError(
        f"corpus file {path} has {count} columns between {separator} and no header with the columns of the recipe (its "
        f"first line is {first}); name the columns of the file in corpus.names, such as [id, text]"
    )


def _fields(path: str, corpus: CorpusConfig, columns: tuple[str, ...]) -> Fields:
    named = corpus.columns
    if not any(isinstance(name, int) for name in (named.id, named.title, named.text)):
        fields = fields_of(path, corpus, columns, title_optional=True)
        has_title = fields.title in columns or fields.title in partition_values(path)
        return fields if has_title else fields.model_copy(update={"title": None})
    # by default the title's name is `title`, which is not a column if columns are named by position
    title = None if named.title == Columns().title and named.title not in columns else named.title
    for role, name in (("id", named.id), ("title", title), ("text", named.text)):
        is_there = 0 <= name < len(columns) if isinstance(name, int) else name is None or name in columns
        if not is_there:
            raise OtherFileError(
                f"corpus file {path} has no column {name!r}, only {len(columns)}: {list(columns)}; "
                f"set columns.{role} in the recipe to a name or to a position from 0"
            )
    return Fields(id=named.id, title=title, text=named.text)
