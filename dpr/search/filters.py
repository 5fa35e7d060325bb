"""The language of filters: which passages a question may find, by their extra columns.

A filter is a JSON object. Each name in it is that of a column, and all of its conditions must hold:

    {"lang": "de"}                                     equal; {"lang": null}: has no value
    {"lang": {"in": ["de", "en"]}}                     one of these
    {"year": {"gte": 1990, "lt": 2000}}                from 1990 on, before 2000; also gt and lte
    {"or": [{"lang": "de"}, {"not": {"year": 1984}}]}  `and` and `or` take lists of filters, `not` takes one

A comparison is false where the passage has no value, and so `not` of it is true. This module checks the form; whether
the columns exist, and values have their types, depends on the snapshot (`dpr.search.filter_values`).
"""

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal

from dpr.errors import RecipeError

MAX_DEPTH, MAX_VALUES = 16, 1000
"""Limits of nested filters, and of values in one filter."""
EXAMPLE = '{"lang": "de", "year": {"gte": 1990}}'

Value = str | int | float | bool | None
Operator = Literal["gt", "gte", "lt", "lte"]
_OPERATORS: dict[str, Operator] = {"gt": "gt", "gte": "gte", "lt": "lt", "lte": "lte"}


@dataclass(frozen=True)
class OneOf:
    """The column has one of these values; None: it has none."""

    column: str
    values: tuple[Value, ...]


@dataclass(frozen=True)
class Bound:
    """The column is on this side of a value."""

    column: str
    operator: Operator
    value: str | int | float | bool


@dataclass(frozen=True)
class Every:
    """All of these hold."""

    parts: "tuple[Condition, ...]"


@dataclass(frozen=True)
class Either:
    """At least one of these holds."""

    parts: "tuple[Condition, ...]"


@dataclass(frozen=True)
class Not:
    """This does not hold."""

    part: "Condition"


Condition = OneOf | Bound | Every | Either | Not
_JOINS: dict[str, type[Every | Either]] = {"and": Every, "or": Either}
_NOT = "not"
CONNECTIVES = (*_JOINS, _NOT)
"""Names that join filters, and so name no columns."""


@dataclass(frozen=True)
class Filter:
    """A filter whose form is right.

    Two are equal if their texts are; their Python values do not decide, since 1 equals true.
    """

    text: str
    """As JSON, its names sorted."""
    condition: Condition = field(compare=False)

    def leaves(self) -> Iterator[OneOf | Bound]:
        """Yield all comparisons."""
        waiting = [self.condition]
        while waiting:
            match waiting.pop():
                case Every(parts) | Either(parts):
                    waiting.extend(parts)
                case Not(part):
                    waiting.append(part)
                case leaf:
                    yield leaf


def parse_filter(document: object) -> Filter:
    """Return the filter that a parsed JSON document describes. Raises RecipeError, saying where it is none."""
    made = Filter(_text(document), _Parser().filter(document, "filter", 1))
    values = sum(len(leaf.values) if isinstance(leaf, OneOf) else 1 for leaf in made.leaves())
    if values > MAX_VALUES:
        raise RecipeError(f"filter compares with {values:,} values; at most {MAX_VALUES:,} are allowed")
    return made


def parse_filter_text(text: str) -> Filter:
    """Return the filter that a JSON text describes. Raises RecipeError, saying where it is none."""
    try:
        document: object = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise RecipeError(f"filter {shown(text)} is not JSON ({error}); write one such as {EXAMPLE}") from error
    return parse_filter(document)


def shown(value: object) -> str:
    """Return a value as JSON, cut if it is long."""
    text = json.dumps(value, ensure_ascii=False).encode("utf-8", "backslashreplace").decode()
    return text if len(text) <= 80 else f"{text[:60]}… ({len(text):,} characters)"


def _text(document: object) -> str:
    try:
        return json.dumps(document, sort_keys=True)
    except RecursionError:
        raise RecipeError(f"filter is deeper than {MAX_DEPTH} filters within filters") from None


class _Parser:
    """Makes conditions of JSON; `where` says in which place of the document something stands."""

    def filter(self, document: object, where: str, depth: int) -> Condition:
        if depth > MAX_DEPTH:
            raise RecipeError(f"{where} is deeper than {MAX_DEPTH} filters within filters")
        if not isinstance(document, dict) or not document:
            raise _wrong(document, where, f"an object that names columns, such as {EXAMPLE}")
        parts = [self._condition(name, value, f"{where}.{name}", depth) for name, value in document.items()]
        return parts[0] if len(parts) == 1 else Every(tuple(parts))

    def _condition(self, name: str, value: object, where: str, depth: int) -> Condition:
        if name == _NOT:
            return Not(self.filter(value, where, depth + 1))
        if name not in _JOINS:
            return _comparison(name, value, where)
        if not isinstance(value, list) or not value:
            raise _wrong(value, where, "a list with at least one filter")
        return _JOINS[name](tuple(self.filter(part, f"{where}.{n}", depth + 1) for n, part in enumerate(value)))


def _comparison(column: str, value: object, where: str) -> Condition:
    if not isinstance(value, dict):
        return OneOf(column, (_value(value, where),))
    parts: list[Condition] = []
    for operator, operand in value.items():
        place = f"{where}.{operator}"
        if operator == "in":
            if not isinstance(operand, list):
                raise _wrong(operand, place, "a list of values")
            parts.append(OneOf(column, tuple(_value(one, place) for one in operand)))
        elif operator in _OPERATORS:
            bound = _value(operand, place)
            if bound is None:
                raise _wrong(operand, place, "a value")
            parts.append(Bound(column, _OPERATORS[operator], bound))
        else:
            raise RecipeError(f"{place} is unknown; a column is compared with in, {', '.join(_OPERATORS)}, or a value")
    if not parts:
        raise _wrong(value, where, f"a value, or an object with in, {', '.join(_OPERATORS)}")
    return parts[0] if len(parts) == 1 else Every(tuple(parts))


def _value(value: object, where: str) -> Value:
    if value is None or isinstance(value, (str, int)) or (isinstance(value, float) and math.isfinite(value)):
        return value
    raise _wrong(value, where, "a string, a finite number, true, false or null")


def _wrong(value: object, where: str, allowed: str) -> RecipeError:
    return RecipeError(f"{where} is {shown(value)}; it must be {allowed}")
