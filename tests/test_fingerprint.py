"""Fingerprints: stable, and different whenever something differs."""

import hashlib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dpr.fingerprint import canonical_json, content_hash, fingerprint, passage_key

text = st.text(alphabet=st.characters(exclude_categories=["Cs"]))


def test_the_key_is_blake2b_of_length_prefixed_fields() -> None:
    data = b"".join(len(part).to_bytes(8, "little") + part for part in (b"7", b"T", "é".encode()))
    assert passage_key("7", "T", "é") == hashlib.blake2b(data, digest_size=16).digest()


@given(st.tuples(text, text), st.tuples(text, text))
def test_moving_text_between_fields_changes_the_hash(one: tuple[str, str], other: tuple[str, str]) -> None:
    assert (content_hash(*one) == content_hash(*other)) == (one == other)


def test_order_of_fields_does_not_matter_and_values_do() -> None:
    assert fingerprint({"a": 1, "b": [2]}) == fingerprint({"b": [2], "a": 1})
    assert fingerprint({"a": 1}) != fingerprint({"a": "1"})


@pytest.mark.parametrize("value", [{1, 2}, Path("x"), {1: "a"}, {"a": object()}, b"bytes"])
def test_what_has_no_stable_form_is_refused(value: object) -> None:
    with pytest.raises(TypeError, match="stable form"):
        canonical_json(value)
