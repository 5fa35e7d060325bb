"""Retrying with smaller batches when a device runs out of memory."""

import logging

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from dpr.encoder.network import Forward
from dpr.encoder.tokens import TokenBatch
from dpr.errors import EncoderError

_log = logging.getLogger(__name__)


class WithinMemory:
    """A Forward that halves its batches when memory runs out, and keeps the lower limit from then on."""

    def __init__(self, forward: Forward) -> None:
        self._forward = forward
        self._max_tokens: int | None = None

    @property
    def limit(self) -> str:
        """Describe the limit that batches needed, for people; empty if memory was sufficient."""
        return "" if self._max_tokens is None else f"out of memory, so at most {self._max_tokens} tokens a batch"

    def __call__(self, tokens: TokenBatch) -> Tensor:
        """See Forward. Raises EncoderError if not even one row fits."""
        if len(tokens) > 1 and self._max_tokens is not None and len(tokens.ids_T) > self._max_tokens:
            half = len(tokens) // 2
            return torch.cat([self(tokens[:half]), self(tokens[half:])])
        try:
            return self._forward(tokens)
        except torch.OutOfMemoryError as error:
            if len(tokens) == 1:
                raise EncoderError(
                    f"a passage of {len(tokens.ids_T)} tokens does not fit the memory of this device ({error}); let "
                    "the encoder have the device to itself, or lower max_tokens"
                ) from error
        # outside of the handler, so that the tensors of the failed attempt are freed
        self._max_tokens = len(tokens.ids_T) // 2
        _log.warning("out of memory: batches of at most %d tokens from now on", self._max_tokens)
        return self(tokens)

    def batches(self, lengths_N: npt.NDArray[np.int64], tokens: int) -> list[npt.NDArray[np.int64]]:
        """See Forward."""
        return self._forward.batches(lengths_N, tokens)
