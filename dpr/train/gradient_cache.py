"""The gradient cache (Gao et al. 2021, arXiv:2101.06983): batches that are larger than memory, with the same gradients.

1. All rows go through their tower, chunk by chunk. Only the first chunks keep their activations, as many as fit.
2. The loss of all vectors gives the gradient of each vector.
3. Each chunk passes these gradients on to the weights. A chunk that has kept nothing is computed again, with the same
   random numbers, so that dropout drops the same values.

Shapes: N rows, D dimensions.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from dpr.encoder.tokens import TokenBatch


class Tower(Protocol):
    """An encoder whose vectors pass gradients."""

    @property
    def dim(self) -> int:
        """Components of a vector."""

    def batches(self, lengths_N: npt.NDArray[np.int64], tokens: int) -> list[npt.NDArray[np.int64]]:
        """Return the row numbers of each chunk of at most `tokens` tokens, or of one row."""

    def vectors(self, tokens: TokenBatch) -> Tensor:
        """Return vectors (N, D)."""


@dataclass(frozen=True)
class Part:
    """Rows that one tower encodes."""

    tower: Tower
    tokens: TokenBatch


class RandomState:
    """The state of the random numbers of the CPU and the current GPU, to be repeated."""

    def __init__(self, device: torch.device) -> None:
        self._devices = [device] if device.type == "cuda" else []
        self._cpu = torch.get_rng_state()
        self._of_devices = [torch.cuda.get_rng_state(each) for each in self._devices]

    @contextmanager
    def again(self) -> Iterator[None]:
        """Repeat the same random numbers within the block; outside nothing changes."""
        with torch.random.fork_rng(self._devices):
            torch.set_rng_state(self._cpu)
            for device, state in zip(self._devices, self._of_devices, strict=True):
                torch.cuda.set_rng_state(state, device)
            yield


@dataclass(frozen=True)
class _Chunk:
    part: int
    tower: Tower
    tokens: TokenBatch
    rows: npt.NDArray[np.int64]
    kept: Tensor | RandomState
    """A chunk's vectors with everything that the backward pass needs, or the inputs to compute them again."""


class GradientCache:
    """Computes one batch: `forward`, then `backward`."""

    def __init__(self, device: torch.device, chunk_tokens: int, kept_tokens: int) -> None:
        self._device, self._chunk_tokens, self._kept_tokens = device, chunk_tokens, kept_tokens
        self._chunks: list[_Chunk] = []

    def forward(self, parts: Sequence[Part]) -> list[Tensor]:
        """Return the vectors (N, D) of each part, without gradients."""
        self._chunks, left = [], self._kept_tokens
        found = [torch.zeros(len(part.tokens), part.tower.dim, device=self._device) for part in parts]
        for number, part in enumerate(parts):
            for rows_B in part.tower.batches(part.tokens.lengths(), self._chunk_tokens):
                some = part.tokens.select(rows_B)
                left -= len(some.ids_T)
                random = RandomState(self._device)
                with torch.set_grad_enabled(left >= 0):
                    vectors_BD = part.tower.vectors(some)
                kept = vectors_BD if left >= 0 else random
                self._chunks.append(_Chunk(number, part.tower, some, rows_B, kept))
                found[number][self._places(rows_B)] = vectors_BD.detach()
        return found

    def backward(self, gradients: Sequence[Tensor]) -> None:
        """Add the contribution of the gradients (N, D) of each part's vectors to the gradients of all weights."""
        while self._chunks:
            chunk = self._chunks.pop(0)  # and its activations are freed
            torch.autograd.backward(self._vectors(chunk), gradients[chunk.part][self._places(chunk.rows)])

    def _vectors(self, chunk: _Chunk) -> Tensor:
        """Return the vectors of a chunk with gradients: those that were kept, or computed again."""
        if isinstance(chunk.kept, Tensor):
            return chunk.kept
        with chunk.kept.again():
            return chunk.tower.vectors(chunk.tokens)

    def _places(self, rows: npt.NDArray[np.int64]) -> Tensor:
        return torch.from_numpy(rows).to(self._device)
