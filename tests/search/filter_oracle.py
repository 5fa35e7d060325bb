"""Filters by plain Python: random ones, and which rows match."""

import datetime
from collections.abc import Mapping
from typing import Any

from hypothesis import strategies as st

Row = Mapping[str, Any]
TYPES = {"lang": "string", "year": "integer", "score": "float", "checked": "boolean", "meta.at": "timestamp"}
VALUES: dict[str, list[Any]] = {
    "lang": ["de", "en", "fr", "", "日本"],
    "year": [-5, 0, 1984, 1990, 2**63 - 1],
    "score": [-0.5, 0.0, 1.0, 2.5],
    "checked": [True, False],
    "meta.at": ["2024-02-03", "2024-02-03T04:05:06.500000+02:00", "1969-01-01T00:00:00Z"],
}
"""What columns hold, and filters ask for, as JSON has it."""


def parsed(column: str, value: Any) -> Any:
    """Return a value as Parquet gives it back."""
    if column != "meta.at" or value is None:
        return value
    time = datetime.datetime.fromisoformat(value)
    return time if time.tzinfo else time.replace(tzinfo=datetime.UTC)


def _leaves(column: str) -> st.SearchStrategy[Any]:
    value = st.sampled_from(VALUES[column])
    equal = value | st.none()
    among = st.fixed_dictionaries({"in": st.lists(equal, max_size=3)})
    ranges = st.dictionaries(st.sampled_from(["gt", "gte", "lt", "lte"]), value, min_size=1, max_size=2)
    conditions = equal | among if column == "checked" else equal | among | ranges
    return conditions.map(lambda condition: {column: condition})


LEAVES = st.sampled_from(sorted(VALUES)).flatmap(_leaves)
FILTERS: st.SearchStrategy[Any] = st.recursive(
    LEAVES | st.tuples(LEAVES, LEAVES).map(lambda two: two[0] | two[1]),
    lambda inner: (
        st.lists(inner, min_size=1, max_size=3).map(lambda parts: {"and": parts})
        | st.lists(inner, min_size=1, max_size=3).map(lambda parts: {"or": parts})
        | inner.map(lambda part: {"not": part})
    ),
    max_leaves=6,
)


def matches(document: Any, row: Row) -> bool:
    """Return whether a row, whose times are Python's, matches a filter."""
    return all(_holds(name, condition, row) for name, condition in document.items())


def _holds(name: str, condition: Any, row: Row) -> bool:
    if name == "and":
        return all(matches(part, row) for part in condition)
    if name == "or":
        return any(matches(part, row) for part in condition)
    if name == "not":
        return not matches(condition, row)
    if not isinstance(condition, dict):
        condition = {"in": [condition]}
    return all(_compares(name, operator, operand, row.get(name)) for operator, operand in condition.items())


def _compares(column: str, operator: str, operand: Any, value: Any) -> bool:
    if operator == "in":
        return value in [parsed(column, one) for one in operand]
    if value is None:
        return False
    bound = parsed(column, operand)
    return bool({"gt": value > bound, "gte": value >= bound, "lt": value < bound, "lte": value <= bound}[operator])
