"""A value in a file is called what users of JSON call it, never what Python does."""

import datetime
import json
from decimal import Decimal

import pytest

from dpr.json_kinds import kind_of


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("null", "null"),
        ("true", "a boolean"),
        ("7", "an integer"),
        ("7.0", "a decimal number"),
        ("NaN", "a decimal number"),
        ('""', "a string"),
        ("[]", "a list"),
        ("{}", "an object"),
    ],
)
def test_every_value_of_json_has_a_name(text: str, name: str) -> None:
    assert kind_of(json.loads(text)) == name


def test_values_of_parquet_and_yaml_have_names() -> None:
    assert kind_of(Decimal("1.5")) == "a decimal number"
    assert kind_of(b"x") == "bytes"
    assert kind_of(datetime.date(2026, 1, 1)) == "a date"
    assert kind_of(datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC)) == "a time"
    assert kind_of(datetime.timedelta(1)) == "a value of type timedelta"
