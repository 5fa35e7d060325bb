"""The vectors of all questions or passages of a set, for exact search; the workers share the work.

Shapes: N rows, B rows of a batch, D dimensions.
"""

import numpy as np
import torch
from torch import Tensor

from dpr.encoder.tokens import TokenBatch
from dpr.train.gradient_cache import Tower
from dpr.train.workers import Workers, gather_rows


class AllVectors:
    """Encodes without gradients; dropout must be off."""

    def __init__(self, workers: Workers, device: torch.device, chunk_tokens: int) -> None:
        self._workers, self._device, self._chunk_tokens = workers, device, chunk_tokens

    def of(self, tower: Tower, tokens: TokenBatch) -> Tensor:
        """Return the vectors (N, D) of all rows; each worker encodes some of them, and gets all."""
        size = self._workers.size
        shares = [np.arange(len(tokens))[rank::size] for rank in range(size)]
        some = tokens.select(shares[self._workers.rank])
        own_ND = torch.zeros(len(some), tower.dim, device=self._device)
        for rows_B in tower.batches(some.lengths(), self._chunk_tokens):
            own_ND[torch.from_numpy(rows_B).to(self._device)] = tower.vectors(some.select(rows_B))
        return gather_rows(self._workers, own_ND, shares)
