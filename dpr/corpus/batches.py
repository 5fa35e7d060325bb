"""Rows from Arrow's record batches, for Parquet, Arrow and Lance."""

from collections.abc import Iterator
from typing import Any, Final

import pyarrow as pa
import pyarrow.compute as pc

from dpr.corpus.fields import fields_of, partition_values, roles, title_and_text
from dpr.corpus.rows import Fields, Row, checked_row, unusable_row
from dpr.errors import OtherFileError
from dpr.recipe import CorpusConfig

BATCH_ROWS: Final = 1024


def fields_of_schema(path: str, corpus: CorpusConfig, schema: pa.Schema) -> Fields:
    """Return which columns hold what; CorpusError if one is missing or of a type that cannot hold it."""
    fields = fields_of(path, corpus, schema.names)
    for role, name in roles(fields):
        held = _type_at(schema, str(name))
        if held is None:
            if str(name) in partition_values(path) or _is_optional_title(role, corpus, fields):
                continue
            raise OtherFileError(
                f"corpus file {path} has no column {name!r}, only {schema.names}; set columns.{role} in the recipe"
            )
        if not _may_hold(role, held, corpus):
            allowed = {"id": "strings or integers", "title": "strings or numbers"}.get(role, "strings")
            is_list = pa.types.is_list(held) or pa.types.is_large_list(held)
            joined = ", or set columns.join to join the texts of a list" if role == "text" and is_list else ""
            raise OtherFileError(
                f"corpus file {path} has {held} in column {name!r}; columns.{role} must name one of {allowed}{joined}"
            )
    return fields


def wanted_columns(fields: Fields, corpus: CorpusConfig, schema: pa.Schema) -> list[str]:
    """Return the names of the columns that a passage and its extra values are read from."""
    names = [str(name) for _, name in roles(fields)] + list(corpus.columns.extra)
    return list(dict.fromkeys(name for name in names if _type_at(schema, name) is not None))


def batch_rows(path: str, position: int, batch: pa.RecordBatch, fields: Fields, corpus: CorpusConfig) -> Iterator[Row]:
    """Yield the rows of a batch, the first of which is at `position` of the file."""
    partitions, rows = partition_values(path), batch.num_rows
    held: dict[str, list[Any]] = {}

    def column(name: str | int | None) -> list[Any]:
        if name is None:
            return [None] * rows
        if name not in held:
            array = _array_at(batch, str(name))
            held[str(name)] = [partitions.get(str(name))] * rows if array is None else values_of(array)
        return held[str(name)]

    ids, titles, texts = column(fields.id), column(fields.title), column(fields.text)
    extras = [column(name) for name in corpus.columns.extra]
    names = tuple(held)
    passages = zip(ids, titles, texts, strict=True)
    stored_rows = zip(*held.values(), strict=True)
    extra_rows = zip(*extras, strict=True) if extras else iter([()] * rows)
    for number, (parts, stored, extra) in enumerate(zip(passages, stored_rows, extra_rows, strict=True), position):
        place, row = (path, number), (names, stored)
        if _Undecoded in map(type, parts) or (extra and _Undecoded in map(type, extra)):
            yield unusable_row(place, row, "bad UTF-8")
            continue
        if fields.title_in_text:
            parts = (parts[0], *title_and_text(parts[2]))
        yield checked_row(place, row, parts, corpus, extra)


def values_of(column: pa.Array) -> list[Any]:
    """Return the values of a column: strings for text, and Python's own values for other types.

    Bytes that are not UTF-8 become an `_Undecoded`.
    """
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    if is_text(column.type):
        try:
            return list(column.cast(pa.large_string()).to_pylist())
        except (UnicodeDecodeError, pa.ArrowInvalid):  # at least one value is not UTF-8
            return [None if data is None else _decoded(data) for data in column.cast(pa.large_binary()).to_pylist()]
    if pa.types.is_decimal(column.type) and column.type.scale == 0:  # SQL's NUMBER for integers
        return [None if value is None else int(value) for value in column.to_pylist()]
    if pa.types.is_timestamp(column.type):  # Python has no nanoseconds
        micros = column.cast(pa.timestamp("us", column.type.tz), safe=False)
        return list((micros.cast(pa.timestamp("us", "UTC")) if column.type.tz else micros).to_pylist())
    try:
        return list(column.to_pylist())
    except (UnicodeDecodeError, ValueError, OverflowError):  # text within lists, or a date that Python does not have
        return [_value_of(column[row]) for row in range(len(column))]


class _Undecoded(str):
    """Text decoded from bytes that are not UTF-8: each invalid byte is half of a surrogate pair."""


def _value_of(scalar: pa.Scalar) -> Any:
    try:
        return scalar.as_py()
    except (UnicodeDecodeError, ValueError, OverflowError):
        return _Undecoded("")


def _decoded(data: bytes) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError:
        return _Undecoded(data.decode("utf-8", "surrogateescape"))


def is_text(held: pa.DataType) -> bool:
    """Return whether a type holds strings, or bytes that may be some."""
    types = pa.types
    strings = types.is_string(held) or types.is_large_string(held) or types.is_string_view(held)
    binaries = types.is_binary(held) or types.is_large_binary(held) or types.is_binary_view(held)
    return bool(strings or binaries or types.is_null(held))


def _may_hold(role: str, held: pa.DataType, corpus: CorpusConfig) -> bool:
    held = held.value_type if pa.types.is_dictionary(held) else held
    if is_text(held):
        return True
    if role == "id":
        return bool(pa.types.is_integer(held)) or (pa.types.is_decimal(held) and held.scale == 0)
    if role == "title":
        return bool(pa.types.is_integer(held) or pa.types.is_floating(held) or pa.types.is_decimal(held))
    is_list = pa.types.is_list(held) or pa.types.is_large_list(held)
    return corpus.columns.join is not None and is_list and is_text(held.value_type)


def _type_at(schema: pa.Schema, name: str) -> pa.DataType | None:
    """Return the type of a column, or of a field within a column (`meta.id`); None if there is none."""
    if name in schema.names:
        return schema.field(name).type if schema.names.count(name) == 1 else None
    head, *rest = name.split(".")
    held = schema.field(head).type if schema.names.count(head) == 1 else None
    for part in rest:
        if held is None or not pa.types.is_struct(held) or held.get_field_index(part) < 0:
            return None
        held = held.field(part).type
    return held if rest else None


def _array_at(batch: pa.RecordBatch, name: str) -> pa.Array | None:
    if _type_at(batch.schema, name) is None:
        return None
    if name in batch.schema.names:
        return batch.column(name)
    head, *rest = name.split(".")
    array = batch.column(head)
    for part in rest:
        array = pc.struct_field(array, part)
    return array


def _is_optional_title(role: str, corpus: CorpusConfig, fields: Fields) -> bool:
    """Return whether the title may be missing: the layout is a known one, not the recipe's."""
    return role == "title" and (fields.id, fields.text) != (corpus.columns.id, corpus.columns.text)
