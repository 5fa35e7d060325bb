"""Extra columns of passages, for filters and display: their types in Parquet, and their part in a passage's key.

A segment holds them as one column `extra`, a structure whose fields are sorted by name. Segments without extra columns
do not have it.
"""

import datetime
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Final

import pyarrow as pa

from dpr.recipe import ExtraType

ExtraValue = str | int | float | bool | datetime.datetime | None
EXTRA: Final = "extra"
NO_EXTRA: Final[Mapping[str, ExtraType]] = MappingProxyType({})
ARROW_TYPES: Final[dict[ExtraType, pa.DataType]] = {
    "string": pa.string(),
    "integer": pa.int64(),
    "float": pa.float64(),
    "boolean": pa.bool_(),
    "timestamp": pa.timestamp("us", "UTC"),
}


def extra_field(types: Mapping[str, ExtraType]) -> pa.Field:
    """Return the column `extra` of these names and types."""
    fields = [pa.field(name, ARROW_TYPES[types[name]]) for name in sorted(types)]
    return pa.field(EXTRA, pa.struct(fields), nullable=False)


def key_texts(names: Sequence[str], values: Sequence[ExtraValue]) -> list[str]:
    """Return the part of a passage's key that comes from its extra columns: names and values, sorted by name."""
    pairs = sorted(zip(names, values, strict=True), key=lambda pair: pair[0])
    return [text for name, value in pairs for text in (name, _key_text(value))]


def key_texts_of(values: Mapping[str, ExtraValue] | None) -> list[str]:
    """Return the same for a row of the column `extra`; nothing if there is no such column."""
    return key_texts(list(values), list(values.values())) if values else []


def extra_array(types: Mapping[str, ExtraType], rows: Sequence[Sequence[ExtraValue]]) -> pa.StructArray:
    """Return N rows of extra values, each in the order of `types`, as a column."""
    columns = dict(zip(types, zip(*rows, strict=True), strict=True)) if rows else dict.fromkeys(types, ())
    fields = list(extra_field(types).type)
    return pa.StructArray.from_arrays([pa.array(columns[field.name], field.type) for field in fields], fields=fields)


def shown(value: ExtraValue) -> str | int | float | bool | None:
    """Return a value as JSON has it; a time in ISO 8601, in UTC."""
    return value.isoformat().replace("+00:00", "Z") if isinstance(value, datetime.datetime) else value


def _key_text(value: ExtraValue) -> str:
    """Return a value with its type, so that 5 and "5" differ."""
    if isinstance(value, datetime.datetime):
        return f"timestamp {value.astimezone(datetime.UTC).isoformat()}"
    return "" if value is None else f"{type(value).__name__} {value}"
