"""Batches that do not fit the memory of a device."""

import numpy as np
import numpy.typing as npt
import pytest
import torch

from dpr.encoder.memory import WithinMemory
from dpr.encoder.packed_forward import PackedForward
from dpr.encoder.tokens import TokenBatch
from dpr.errors import EncoderError
from tests.encoder.models import random_tokens


class LittleMemory:
    """A Forward that gives token sums as vectors, and runs out of memory as a device does."""

    def __init__(self, max_tokens: int) -> None:
        self._max_tokens = max_tokens
        self.refused: list[int] = []

    def __call__(self, tokens: TokenBatch) -> torch.Tensor:
        if len(tokens.ids_T) > self._max_tokens:
            self.refused.append(len(tokens.ids_T))
            raise torch.OutOfMemoryError("tried to allocate too much")
        bounds = zip(tokens.offsets[:-1], tokens.offsets[1:], strict=True)
        return torch.tensor([[float(tokens.ids_T[first:last].sum())] for first, last in bounds])

    def batches(self, lengths_N: npt.NDArray[np.int64], tokens: int) -> list[npt.NDArray[np.int64]]:
        return PackedForward.batches(lengths_N, tokens)


def test_out_of_memory_halves_batches_logs_it_and_gives_the_same_vectors(caplog: pytest.LogCaptureFixture) -> None:
    tokens, device = random_tokens([20] * 32), LittleMemory(200)
    expected_ND = LittleMemory(10_000)(tokens)
    forward = WithinMemory(device)
    torch.testing.assert_close(forward(tokens), expected_ND)
    assert device.refused == [640, 320]
    assert [record.args for record in caplog.records] == [(320,), (160,)]
    assert forward.limit == "out of memory, so at most 160 tokens a batch"
    torch.testing.assert_close(forward(tokens), expected_ND)
    assert device.refused == [640, 320]  # the smaller limit is remembered


def test_a_row_that_does_not_fit_alone_is_an_error() -> None:
    with pytest.raises(EncoderError, match="a passage of 50 tokens does not fit"):
        WithinMemory(LittleMemory(30))(random_tokens([20, 50]))
