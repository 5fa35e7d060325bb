"""Running a tower over padded batches, on any device.

Shapes: N rows, B rows of a batch, L tokens of its longest row, H hidden size, D dimensions.
"""

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from dpr.encoder.network import Network
from dpr.encoder.tokens import TokenBatch
from dpr.encoder.tower import TowerSpec


class PaddedForward:
    """A Forward that pads all rows of a batch to its longest one; with rows of nearly equal length little is wasted."""

    def __init__(self, network: Network, tower: TowerSpec, device: torch.device) -> None:
        self._network, self._tower, self._device = network, tower, device

    def __call__(self, tokens: TokenBatch) -> Tensor:
        """See Forward."""
        ids_BL, types_BL, mask_BL = (self._to_device(x) for x in _padded(tokens, self._network.pad_id))
        hidden_BLH = self._network.hidden(ids_BL, types_BL, mask_BL)
        pooled_BH = pool_padded(hidden_BLH, mask_BL, self._tower.pooling)
        vectors_BD = self._network.project(pooled_BH)
        if self._tower.normalize:
            vectors_BD = nn.functional.normalize(vectors_BD, dim=-1)
        return vectors_BD.float().cpu()

    def batches(self, lengths_N: npt.NDArray[np.int64], tokens: int) -> list[npt.NDArray[np.int64]]:
        """See Forward. The longest rows come first, so that the lengths within a batch differ as little as possible."""
        order_N = np.argsort(-lengths_N, kind="stable")
        batches, first = [], 0
        while first < len(order_N):
            count = max(1, tokens // max(1, int(lengths_N[order_N[first]])))
            batches.append(order_N[first : first + count])
            first += count
        return batches

    def _to_device(self, array: npt.NDArray[Any] | None) -> Any:
        return None if array is None else torch.from_numpy(array).to(self._device)


def pool_padded(hidden_BLH: Tensor, mask_BL: Tensor | None, pooling: str) -> Tensor:
    """Return one float32 vector (B, H) a row: that of its first token (cls), or mean or maximum of its real tokens."""
    if pooling == "cls":
        return hidden_BLH[:, 0].float()
    hidden_BLH = hidden_BLH.float()
    if mask_BL is None:
        return hidden_BLH.mean(1) if pooling == "mean" else hidden_BLH.amax(1)
    mask_BL1 = mask_BL[..., None]
    if pooling == "max":
        return hidden_BLH.masked_fill(mask_BL1 == 0, float("-inf")).amax(1)
    # masked, not multiplied by zero: a value that is not finite at a padded place must not reach the mean
    return hidden_BLH.masked_fill(mask_BL1 == 0, 0.0).sum(1) / mask_BL1.sum(1)


def _padded(
    tokens: TokenBatch, pad_id: int
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], npt.NDArray[np.int64] | None]:
    """Return ids and types (B, L), and the mask (B, L), which is 1 at real tokens, and None if nothing is padded."""
    lengths = tokens.lengths()
    real_BL = np.arange(lengths.max(initial=1))[None, :] < lengths[:, None]
    ids_BL, types_BL = np.full(real_BL.shape, pad_id, np.int64), np.zeros(real_BL.shape, np.int64)
    ids_BL[real_BL], types_BL[real_BL] = tokens.ids_T, tokens.types_T
    return ids_BL, types_BL, None if real_BL.all() else real_BL.astype(np.int64)
