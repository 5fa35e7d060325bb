"""What a sentence calls a value of a file: by plain names, near those of JSON, and not by those of Python.

Parquet and YAML hold a few more kinds of values.
"""

import datetime
from collections.abc import Mapping
from decimal import Decimal
from typing import Final

_NAMES: Final[tuple[tuple[type | tuple[type, ...], str], ...]] = (
    (type(None), "null"),
    (bool, "a boolean"),
    (int, "an integer"),
    ((float, Decimal), "a decimal number"),
    (str, "a string"),
    ((list, tuple), "a list"),
    (Mapping, "an object"),
    (bytes, "bytes"),
    (datetime.datetime, "a time"),
    (datetime.date, "a date"),
)
"""In this order, since Python's booleans are integers, and its times are dates."""


def kind_of(value: object) -> str:
    """Return what kind of value this is, with its article: null, a boolean, an integer, a string, a list, an object."""
    other = f"a value of type {type(value).__name__}"
    return next((name for kinds, name in _NAMES if isinstance(value, kinds)), other)
