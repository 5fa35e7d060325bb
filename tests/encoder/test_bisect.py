"""Rows that make the encoder fail are found one by one, and distinguished from an encoder that always fails."""

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dpr.encoder.bisect import MAX_BAD_ROWS, encode_rows
from dpr.encoder.tokens import TokenBatch
from dpr.errors import UnitError

NAN, CRASH = 97, 99
"""Tokens for which the encoder gives a vector that is not finite, and at which it fails."""


class FragileEncoder:
    """Gives a row's first token as its vector; fails on some tokens."""

    dim = 2

    def __init__(self, broken: bool = False) -> None:
        self._broken = broken

    def encode(self, tokens: TokenBatch) -> npt.NDArray[np.float16]:
        if self._broken or CRASH in tokens.ids_T:
            raise RuntimeError("token out of\nrange")
        first_N = tokens.ids_T[tokens.offsets[:-1]].astype(np.float16)
        return np.stack([np.where(first_N == NAN, np.nan, first_N)] * 2, axis=1)


def rows_of(tokens: list[int]) -> TokenBatch:
    ids_T = np.array(tokens, np.int32)
    return TokenBatch(ids_T, np.zeros(len(ids_T), np.uint8), np.arange(len(ids_T) + 1))


@settings(deadline=None)
@given(st.lists(st.sampled_from([1, 2, 3, 4, 5, NAN, CRASH]), max_size=60))
def test_good_rows_have_vectors_and_bad_rows_have_reasons(tokens: list[int]) -> None:
    vectors_ND, reasons = encode_rows(FragileEncoder(), rows_of(tokens))  # type: ignore[arg-type]
    assert vectors_ND.shape == (len(tokens), 2)
    for row, token in enumerate(tokens):
        if token == CRASH:
            assert reasons[row] == "the encoder failed on it: RuntimeError: token out of range"
        elif token == NAN:
            assert reasons[row] == "the encoder gave a vector that is not finite"
        else:
            assert row not in reasons
            assert vectors_ND[row].tolist() == [token, token]


def test_too_many_bad_rows_are_an_error_of_the_encoder() -> None:
    encode_rows(FragileEncoder(), rows_of([CRASH] * MAX_BAD_ROWS + [1]))  # type: ignore[arg-type]
    with pytest.raises(UnitError, match="point to the model or the machine, so nothing was quarantined"):
        encode_rows(FragileEncoder(), rows_of([CRASH] * (MAX_BAD_ROWS + 1)))  # type: ignore[arg-type]


def test_an_encoder_that_always_fails_is_at_fault_itself() -> None:
    with pytest.raises(UnitError, match="the encoder fails even on a passage of two tokens"):
        encode_rows(FragileEncoder(broken=True), rows_of([1, 2, 3]))  # type: ignore[arg-type]
