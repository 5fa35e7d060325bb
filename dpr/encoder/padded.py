"""Running a tower over padded batches, on any device.

Shapes: N rows, B rows of a batch, L tokens of its longest row, H hidden size, D dimensions.
"""

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from dpr.encoder.network import Network
from dpr.encoder.pooling import pool_padded
from dpr.encoder.tokens import TokenBatch, prompt_tokens
from dpr.encoder.tower import TowerSpec


class PaddedForward:
    """A Forward that pads all rows of a batch to its longest one; with rows of nearly equal length little is wasted."""

    def __init__(self, network: Network, tower: TowerSpec, device: torch.device) -> None:
        self._network, self._tower, self._device = network, tower, device
        self._skip = 0 if tower.prompt_pooled else prompt_tokens(tower)

    def __call__(self, tokens: TokenBatch) -> Tensor:
        """See Forward."""
        ids_BL, types_BL, mask_BL = (self._to_device(x) for x in padded(tokens, self._network.pad_id))
        hidden_BLH = self._network.hidden(ids_BL, types_BL, mask_BL)
        pooled_BH = pool_padded(hidden_BLH, mask_BL, self._tower.pooling, self._skip)
        return self._network.project(pooled_BH).cpu()

    def batches(self, lengths_N: npt.NDArray[np.int64], tokens: int) -> list[npt.NDArray[np.int64]]:
        """See Forward."""
        return batches_by_length(lengths_N, tokens)

    def _to_device(self, array: npt.NDArray[Any] | None) -> Any:
        return None if array is None else torch.from_numpy(array).to(self._device)


def batches_by_length(lengths_N: npt.NDArray[np.int64], tokens: int) -> list[npt.NDArray[np.int64]]:
    """Return the row numbers of each batch, which is at most `tokens` tokens with its padding, or one row.

    The longest rows come first, so that the lengths within a batch differ as little as possible.
    """
    order_N = np.argsort(-lengths_N, kind="stable")
    batches, first = [], 0
    while first < len(order_N):
        count = max(1, tokens // max(1, int(lengths_N[order_N[first]])))
        batches.append(order_N[first : first + count])
        first += count
    return batches


def padded(
    tokens: TokenBatch, pad_id: int
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], npt.NDArray[np.int64] | None]:
    """Return ids and types (B, L), and the mask (B, L), which is 1 at real tokens, and None if nothing is padded."""
    lengths = tokens.lengths()
    real_BL = np.arange(lengths.max(initial=1))[None, :] < lengths[:, None]
    ids_BL, types_BL = np.full(real_BL.shape, pad_id, np.int64), np.zeros(real_BL.shape, np.int64)
    ids_BL[real_BL], types_BL[real_BL] = tokens.ids_T, tokens.types_T
    return ids_BL, types_BL, None if real_BL.all() else real_BL.astype(np.int64)
