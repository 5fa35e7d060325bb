"""From JSON objects to rows: JSON lines and whole documents."""

import json
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final

from dpr.corpus.fields import partition_values, title_and_text, value_at
from dpr.corpus.json_values import iter_values
from dpr.corpus.rows import Row, Slice, UnusableRecordError, checked_row, unusable_row
from dpr.corpus.signatures import UTF8_BOM
from dpr.corpus.unpacking import open_slice
from dpr.json_kinds import kind_of
from dpr.recipe import CorpusConfig

JSON_BYTES_PER_CHAR: Final = 12
"""The most bytes that a character takes: a surrogate pair, written as two \\uXXXX escapes."""
_SPACE: Final = " \t\r\n"

Parts = tuple[tuple[object, object, object], tuple[object, ...]]
"""Id, title and text as they are in a record, and its extra values."""
Parser = Callable[[str], Parts]
"""Splits the text of a record into fields, or raises UnusableRecordError."""


def json_parser(slice_: Slice, corpus: CorpusConfig) -> Parser:
    """Return a function that splits the text of a JSON object into fields."""
    decode: Callable[[str], tuple[Any, int]] = json.JSONDecoder().raw_decode
    pick = object_picker(slice_, corpus)

    def parse(text: str) -> Parts:
        text = text.strip(_SPACE)
        try:
            document, end = decode(text)  # json.loads spends a third of its time on white space
        except (ValueError, RecursionError):  # ValueError: bad JSON, or an integer of thousands of digits
            raise UnusableRecordError("broken JSON") from None
        if end != len(text):
            raise UnusableRecordError("broken JSON")
        if not isinstance(document, dict):
            raise UnusableRecordError(f"{kind_of(document)} instead of a JSON object")
        return pick(document)

    return parse


def object_picker(slice_: Slice, corpus: CorpusConfig) -> Callable[[Mapping[str, Any]], Parts]:
    """Return a function that picks a passage's fields from a JSON object, or from the keys of its file's folders."""
    fields, partitions, extra = slice_.fields, partition_values(slice_.path), tuple(corpus.columns.extra)
    names = [str(name) for name in (fields.id, fields.text, *([] if fields.title is None else [fields.title]))]
    if not partitions and not extra and not fields.title_in_text and not any("." in name for name in names):
        id_name, title_name, text_name = str(fields.id), fields.title, str(fields.text)

        def pick_plain(document: Mapping[str, Any]) -> Parts:
            title = None if title_name is None else document.get(str(title_name))
            return (document.get(id_name), title, document.get(text_name)), ()

        return pick_plain

    def at(document: Mapping[str, Any], name: str | int | None) -> object:
        return None if name is None else value_at(document, str(name), partitions.get(str(name)))

    def pick(document: Mapping[str, Any]) -> Parts:
        title, text = at(document, fields.title), at(document, fields.text)
        if fields.title_in_text:
            title, text = title_and_text(text)
        return (at(document, fields.id), title, text), tuple(at(document, name) for name in extra)

    return pick


def read_json(slice_: Slice, corpus: CorpusConfig) -> Iterator[Row]:
    """Yield the rows of a `json` file, whose positions are the offsets of its objects."""
    parse, path = json_parser(slice_, corpus), slice_.path
    max_bytes = JSON_BYTES_PER_CHAR * corpus.max_passage_chars + 2**20
    with open_slice(slice_) as file:
        for position, data, is_cut in iter_values(file, max_bytes):
            yield parsed_row((path, position), data, parse, corpus, is_cut=is_cut)


def parsed_row(place: tuple[str, int], data: bytes, parse: Parser, corpus: CorpusConfig, *, is_cut: bool) -> Row:
    """Return the row of a record's bytes."""
    if is_cut:
        return unusable_row(place, data, "longer than max_passage_chars")
    try:
        fields, extra = parse((data if place[1] else data.removeprefix(UTF8_BOM)).decode())
    except UnicodeDecodeError:
        return unusable_row(place, data, "bad UTF-8")
    except UnusableRecordError as error:
        return unusable_row(place, data, str(error))
    return checked_row(place, data, fields, corpus, extra)
