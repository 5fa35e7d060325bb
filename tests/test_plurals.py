"""What people read has one row, and two rows."""

import pytest

from dpr.plurals import counted


@pytest.mark.parametrize(("number", "text"), [(0, "0 rows"), (1, "1 row"), (2, "2 rows"), (1000, "1,000 rows")])
def test_one_is_one(number: int, text: str) -> None:
    assert counted(number, "row") == text
