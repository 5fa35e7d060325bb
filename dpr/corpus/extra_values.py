"""Values of extra columns, converted to the types that the recipe names."""

import datetime
import math
from collections.abc import Callable, Mapping, Sequence
from decimal import Decimal
from typing import Final

from dpr.formats.extra import ExtraValue
from dpr.json_kinds import kind_of
from dpr.recipe import ExtraType

_TRUTHS: Final = {"true": True, "false": False}
_INT64: Final = range(-(2**63), 2**63)


class UnusableValueError(Exception):
    """A value of another type than its column; the message is the reason, and does not hold the value."""


def usable_values(types: Mapping[str, ExtraType], values: Sequence[object]) -> tuple[ExtraValue, ...]:
    """Return the values of extra columns, in the order of `types`, each of its type or None.

    A string, the only type in TSV, is parsed; an empty one is None unless the type is string. Raises UnusableValueError
    for a value of another type.
    """
    return tuple(_usable(name, type_, value) for (name, type_), value in zip(types.items(), values, strict=True))


def _usable(name: str, type_: ExtraType, value: object) -> ExtraValue:
    if value is None or (isinstance(value, float) and math.isnan(value)):  # pandas writes NaN for a missing value
        return None
    if isinstance(value, str) and type_ != "string":
        value = value.strip()
        if not value:
            return None
    try:
        return _CONVERSIONS[type_](value)
    except OverflowError:
        raise UnusableValueError(f"{name} is beyond the range of type {type_}") from None
    except (ValueError, TypeError):
        raise UnusableValueError(f"{name} is {kind_of(value)} that is not of type {type_}") from None


def plain_text(value: object) -> str:
    """Return a value as text; a decimal with all of its digits, and without an exponent."""
    return f"{value:f}" if isinstance(value, Decimal) else str(value)


def _string(value: object) -> str:
    if isinstance(value, bool) or not isinstance(value, (str, int, float, Decimal)):
        raise TypeError
    text = plain_text(value)
    text.encode()  # half of a surrogate pair: UnicodeEncodeError, which is a ValueError
    return text


def _integer(value: object) -> int:
    if isinstance(value, (float, Decimal)) and value == value // 1:
        value = int(value)
    if isinstance(value, str):
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError
    if value not in _INT64:
        raise OverflowError
    return value


def _float(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, (str, int, float, Decimal)):
        raise TypeError
    number = float(value)
    if math.isnan(number):
        raise ValueError
    if math.isinf(number):
        raise OverflowError
    return number + 0.0  # -0.0 becomes 0.0, since they are equal


def _boolean(value: object) -> bool:
    if isinstance(value, str):
        value = _TRUTHS.get(value.lower())
    if not isinstance(value, bool):
        raise TypeError
    return value


def _timestamp(value: object) -> datetime.datetime:
    """Read a time; one without a zone is in UTC."""
    if isinstance(value, str):
        value = datetime.datetime.fromisoformat(value)
    if isinstance(value, datetime.date) and not isinstance(value, datetime.datetime):
        value = datetime.datetime(value.year, value.month, value.day)
    if not isinstance(value, datetime.datetime):
        raise TypeError
    return value.replace(tzinfo=datetime.UTC) if value.tzinfo is None else value.astimezone(datetime.UTC)


_CONVERSIONS: Final[dict[ExtraType, Callable[[object], ExtraValue]]] = {
    "string": _string,
    "integer": _integer,
    "float": _float,
    "boolean": _boolean,
    "timestamp": _timestamp,
}
