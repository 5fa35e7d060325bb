"""What people read has one row, and two rows."""

import pytest

from dpr.plurals import by_reason, counted


@pytest.mark.parametrize(("number", "text"), [(0, "0 rows"), (1, "1 row"), (2, "2 rows"), (1000, "1,000 rows")])
def test_one_is_one(number: int, text: str) -> None:
    assert counted(number, "row") == text


def test_reasons_with_numbers_and_parentheses_are_told_from_their_counts() -> None:
    counts = {"2 ids (of 3)": 1, "no text": 1_000, "no id": 1}
    assert by_reason(counts) == "1,002 rows: 1,000 for 'no text', 1 for '2 ids (of 3)', 1 for 'no id'"
    assert by_reason({"no id": 1}, "unusable row") == "1 unusable row: 1 for 'no id'"
