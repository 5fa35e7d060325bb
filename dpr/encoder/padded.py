"""Running a tower over padded batches, on any device.

Shapes: N rows, B rows of a batch, L tokens of its longest row, H hidden size, D dimensions.
"""

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from dpr.encoder.network import Network
from dpr.encoder.pooling import pool_padded
from dpr.encoder.tokens import TokenBatch, prompt_tokens
from dpr.encoder.tower import TowerSpec

_TRIED_TOKENS = 4
"""Two tokens and their padding: a length that every model accepts."""
_SAME_COSINE = 0.9999


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


class EqualLengthsForward(PaddedForward):
    """A Forward for networks whose vectors padding would change: only rows of equal length share a batch."""

    def batches(self, lengths_N: npt.NDArray[np.int64], tokens: int) -> list[npt.NDArray[np.int64]]:
        """See Forward."""
        mixed = super().batches(lengths_N, tokens)
        ends = [np.flatnonzero(np.diff(lengths_N[rows_B])) + 1 for rows_B in mixed]
        return [part for rows_B, at in zip(mixed, ends, strict=True) for part in np.split(rows_B, at)]


def padding_changes(network: Network, device: torch.device) -> bool:
    """Return whether a row's token vectors change if it is padded, since the network mixes tokens without its mask.

    FNet and ConvBERT are such networks. `network` is float32 and on `device`.
    """
    rng = np.random.default_rng(0)
    ids_BL = torch.from_numpy(rng.integers(0, network.vocabulary, (1, _TRIED_TOKENS))).to(device)
    types_BL, mask_BL = torch.zeros_like(ids_BL), torch.ones_like(ids_BL)
    mask_BL[:, 2:] = 0
    with torch.inference_mode():
        padded_BLH = network.hidden(ids_BL, types_BL, mask_BL)[:, :2]
        alone_BLH = network.hidden(ids_BL[:, :2], types_BL[:, :2], None)
    return bool((nn.functional.cosine_similarity(padded_BLH, alone_BLH, dim=-1) < _SAME_COSINE).any())


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
