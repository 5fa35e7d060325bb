"""Evaluating a filter over one segment: values of the columns' types, and a mask of the rows that match.

Shapes: N rows of a segment.
"""

import operator
from collections.abc import Callable, Mapping
from functools import reduce

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from dpr.corpus.extra_values import UnusableValueError, usable_values
from dpr.errors import RecipeError
from dpr.formats.extra import ARROW_TYPES, ExtraValue
from dpr.index.live_rows import Mask
from dpr.recipe import ExtraType
from dpr.search.filters import Bound, Condition, Either, Every, Filter, Not, OneOf, Value, shown

Leaf = OneOf | Bound
Operands = Mapping[Leaf, pa.Array]
"""The operands of each comparison, in the type of its column."""
ColumnOf = Callable[[str], pa.Array | None]
"""Maps the name of an extra column to its values (N,); None: the segment does not have it."""
_KINDS: dict[ExtraType, tuple[tuple[type, ...], str]] = {
    "string": ((str,), "a string"),
    "integer": ((int,), "an integer of 64 bits"),
    "float": ((int, float), "a number"),
    "boolean": ((bool,), "true or false, and no range"),
    "timestamp": ((str,), 'a time in ISO 8601, such as "2024-02-03T04:05:06Z"'),
}
"""Python's types of the JSON values that a column is compared with, and their names in messages."""
_COMPARISONS = {"gt": pc.greater, "gte": pc.greater_equal, "lt": pc.less, "lte": pc.less_equal}


def operands_of(where: Filter, types: Mapping[str, ExtraType]) -> Operands:
    """Return the operands of a filter, for columns of these types.

    Raises RecipeError for an unknown column, listing the known ones, and for a value of another type.
    """
    return {leaf: _operands(leaf, types) for leaf in where.leaves()}


def matching_rows(condition: Condition, operands: Operands, column: ColumnOf, rows: int) -> Mask:
    """Return which of the N rows of a segment match."""

    def match(part: Condition) -> Mask:
        match part:
            case Every(parts):
                return reduce(operator.and_, map(match, parts))
            case Either(parts):
                return reduce(operator.or_, map(match, parts))
            case Not(negated):
                return ~match(negated)
            case leaf:
                return _compare(leaf, operands[leaf], column(leaf.column), rows)

    return match(condition)


def known_columns(types: Mapping[str, ExtraType]) -> str:
    """Return which extra columns a snapshot has, in words."""
    there = ", ".join(f"{name} ({type_})" for name, type_ in sorted(types.items()))
    return f"its extra columns are {there}" if there else "it has none; name some in corpus.columns.extra"


def _operands(leaf: Leaf, types: Mapping[str, ExtraType]) -> pa.Array:
    if leaf.column not in types:
        raise RecipeError(
            f"filter names the extra column {shown(leaf.column)}, and the snapshot has no such; {known_columns(types)}"
        )
    type_ = types[leaf.column]
    is_range = isinstance(leaf, Bound)
    typed: list[ExtraValue] = []
    for value in (leaf.value,) if isinstance(leaf, Bound) else leaf.values:
        try:
            typed.append(_typed(type_, value, is_range=is_range))
        except UnusableValueError:
            raise RecipeError(
                f"filter compares column {leaf.column} of type {type_} with {shown(value)}; it takes {_KINDS[type_][1]}"
            ) from None
    return pa.array(typed, ARROW_TYPES[type_])


def _typed(type_: ExtraType, value: Value, *, is_range: bool) -> ExtraValue:
    """Return a value as a column of this type has it. Raises UnusableValueError for a value of another type."""
    if value is None:
        return None
    is_boolean = type_ == "boolean"
    if isinstance(value, bool) != is_boolean or not isinstance(value, _KINDS[type_][0]) or (is_boolean and is_range):
        raise UnusableValueError
    (typed,) = usable_values({"": type_}, [value])
    if typed is None:  # a blank text is not a time
        raise UnusableValueError
    return typed


def _compare(leaf: Leaf, values: pa.Array, column: pa.Array | None, rows: int) -> Mask:
    if column is None:
        return np.full(rows, isinstance(leaf, OneOf) and values.null_count > 0)
    is_coded = isinstance(column, pa.DictionaryArray)
    compared = column.dictionary if is_coded else column
    if isinstance(leaf, Bound):
        found = _COMPARISONS[leaf.operator](compared, values[0])
    else:
        found = pc.is_in(compared, value_set=values.drop_null())
    if is_coded:
        found = found.take(column.indices)
    found = pc.fill_null(found, False)
    if isinstance(leaf, OneOf) and values.null_count:
        found = pc.or_(found, column.is_null())
    mask_N: Mask = found.to_numpy(zero_copy_only=False)
    return mask_N
