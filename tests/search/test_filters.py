"""The language of filters: what is refused, and in which words."""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dpr.errors import RecipeError
from dpr.search.filter_values import operands_of
from dpr.search.filters import MAX_DEPTH, MAX_VALUES, parse_filter, parse_filter_text
from tests.search.filter_oracle import FILTERS, TYPES

EXAMPLE = 'an object that names columns, such as {"lang": "de", "year": {"gte": 1990}}'
VALUE = "a string, a finite number, true, false or null"
COLUMNS = "its extra columns are checked (boolean), lang (string), meta.at (timestamp), score (float), year (integer)"


def nested(depth: int) -> Any:
    document: Any = {"lang": "de"}
    for _ in range(depth - 1):
        document = {"not": document}
    return document


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ({}, f"filter is {{}}; it must be {EXAMPLE}"),
        (["lang"], f'filter is ["lang"]; it must be {EXAMPLE}'),
        ({"and": {"lang": "de"}}, 'filter.and is {"lang": "de"}; it must be a list with at least one filter'),
        ({"and": []}, "filter.and is []; it must be a list with at least one filter"),
        ({"or": []}, "filter.or is []; it must be a list with at least one filter"),
        ({"or": [{"lang": "de"}, 5]}, f"filter.or.1 is 5; it must be {EXAMPLE}"),
        ({"not": None}, f"filter.not is null; it must be {EXAMPLE}"),
        ({"lang": ["de"]}, f'filter.lang is ["de"]; it must be {VALUE}'),
        ({"lang": {}}, "filter.lang is {}; it must be a value, or an object with in, gt, gte, lt, lte"),
        ({"lang": {"in": "de"}}, 'filter.lang.in is "de"; it must be a list of values'),
        ({"lang": {"in": [["de"]]}}, f'filter.lang.in is ["de"]; it must be {VALUE}'),
        ({"lang": {"eq": 1}}, "filter.lang.eq is unknown; a column is compared with in, gt, gte, lt, lte, or a value"),
        ({"year": {"gt": None}}, "filter.year.gt is null; it must be a value"),
        ({"score": float("nan")}, f"filter.score is NaN; it must be {VALUE}"),
        ({"lang": "x" * 99 * 99, "or": 1}, "filter.or is 1; it must be a list with at least one filter"),
        (
            nested(MAX_DEPTH + 1),
            f"filter{'.not' * MAX_DEPTH} is deeper than {MAX_DEPTH} filters within filters",
        ),
        (
            {"year": {"in": [1] * (MAX_VALUES + 1)}},
            f"filter compares with {MAX_VALUES + 1:,} values; at most {MAX_VALUES:,} are allowed",
        ),
    ],
)
def test_what_is_no_filter_is_one_sentence(document: Any, message: str) -> None:
    with pytest.raises(RecipeError) as error:
        parse_filter(document)
    assert str(error.value) == message


@pytest.mark.parametrize("text", ["", "{", "[" * 100_000, '{"lang": "de"'])
def test_what_is_no_json_is_one_sentence(text: str) -> None:
    with pytest.raises(RecipeError, match=r"^filter .{2,100} is not JSON \(.*\); write one such as \{.*$"):
        parse_filter_text(text)


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ({"lnag": "de"}, f'filter names the extra column "lnag", and the snapshot has no such; {COLUMNS}'),
        (
            {"not": {"or": [{"lang": "de"}, {"year": "1984"}]}},
            'filter compares column year of type integer with "1984"; it takes an integer of 64 bits',
        ),
        ({"year": 2**63}, f"filter compares column year of type integer with {2**63}; it takes an integer of 64 bits"),
        ({"year": 1.0}, "filter compares column year of type integer with 1.0; it takes an integer of 64 bits"),
        ({"year": True}, "filter compares column year of type integer with true; it takes an integer of 64 bits"),
        ({"lang": 5}, "filter compares column lang of type string with 5; it takes a string"),
        ({"lang": "\ud800"}, 'filter compares column lang of type string with "\\ud800"; it takes a string'),
        ({"score": "high"}, 'filter compares column score of type float with "high"; it takes a number'),
        ({"checked": 1}, "filter compares column checked of type boolean with 1; it takes true or false, and no range"),
        (
            {"checked": {"gt": False}},
            "filter compares column checked of type boolean with false; it takes true or false, and no range",
        ),
        *(
            (
                {"meta.at": value},
                f"filter compares column meta.at of type timestamp with {shown}; it takes a time in ISO 8601, such as "
                '"2024-02-03T04:05:06Z"',
            )
            for value, shown in (("yesterday", '"yesterday"'), (" ", '" "'), (1706918400, "1706918400"))
        ),
    ],
)
def test_another_column_or_type_is_one_sentence(document: Any, message: str) -> None:
    with pytest.raises(RecipeError) as error:
        operands_of(parse_filter(document), TYPES)  # type: ignore[arg-type]
    assert str(error.value) == message


def test_a_snapshot_without_extra_columns_says_so() -> None:
    with pytest.raises(RecipeError, match=r"it has none; name some in corpus\.columns\.extra"):
        operands_of(parse_filter({"lang": "de"}), {})


def test_one_and_true_are_not_the_same_filter() -> None:
    one, true = parse_filter({"year": 1}), parse_filter({"year": True})
    assert one != true
    assert one == parse_filter_text('{"year":   1}')
    assert parse_filter({"a": 1, "b": 2}) == parse_filter({"b": 2, "a": 1})


@settings(deadline=None, max_examples=40, derandomize=True)
@given(FILTERS)
def test_every_right_filter_is_taken(document: Any) -> None:
    operands_of(parse_filter(document), TYPES)  # type: ignore[arg-type]


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["and", "or", "not", "in", "gt", "lang", "year", "checked", "?"]), inner)
    ),
    max_leaves=12,
)


@settings(deadline=None, max_examples=100, derandomize=True)
@given(JSON)
def test_whatever_json_it_is_nothing_but_one_sentence_is_raised(document: Any) -> None:
    sentence = "filter"
    try:
        operands_of(parse_filter(document), TYPES)  # type: ignore[arg-type]
    except RecipeError as error:
        sentence = str(error)
    assert sentence.startswith("filter")
    assert "\n" not in sentence
