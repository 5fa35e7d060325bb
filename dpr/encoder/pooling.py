"""How the token vectors of a padded batch become one vector a row, as sentence-transformers' Pooling does it.

Shapes: B rows of a batch, L tokens of its longest row, H hidden size. Rows are padded on the right.
"""

import torch
from torch import Tensor


def pool_padded(hidden_BLH: Tensor, mask_BL: Tensor | None, pooling: str, skip: int = 0) -> Tensor:
    """Return one float32 vector a row, (B, H) for each of the poolings that `pooling` joins by +, side by side.

    `mask_BL` is 1 at real tokens, and None if all tokens are real. The first `skip` tokens, those of a prompt that the
    model leaves out, do not count. A row without any other token has a vector of zeros.
    """
    if pooling == "cls" and not skip:  # the other token vectors need not become float32
        return hidden_BLH[:, 0].float()
    hidden_BLH = hidden_BLH.float()
    if mask_BL is None:
        mask_BL = torch.ones(hidden_BLH.shape[:2], dtype=torch.int64, device=hidden_BLH.device)
    counted_BL = mask_BL.clone()
    counted_BL[:, :skip] = 0
    pooled = [_pool(hidden_BLH, mask_BL, counted_BL, mode, skip) for mode in pooling.split("+")]
    pooled_BH = torch.cat(pooled, dim=-1)
    return pooled_BH.masked_fill(counted_BL.sum(1, keepdim=True) == 0, 0.0) if skip else pooled_BH


def _pool(hidden_BLH: Tensor, mask_BL: Tensor, counted_BL: Tensor, mode: str, skip: int) -> Tensor:
    if mode in ("cls", "lasttoken"):
        last_B = mask_BL.sum(1).clamp(min=1) - 1
        places_B = last_B.clamp(max=skip) if mode == "cls" else last_B
        return hidden_BLH[torch.arange(len(hidden_BLH), device=hidden_BLH.device), places_B]
    counted_BL1 = counted_BL[..., None]
    if mode == "max":
        return hidden_BLH.masked_fill(counted_BL1 == 0, float("-inf")).amax(1)
    # masked, not multiplied by zero: a value that is not finite at a padded place must not reach the mean
    hidden_BLH = hidden_BLH.masked_fill(counted_BL1 == 0, 0.0)
    if mode == "weightedmean":
        weights_BL1 = counted_BL1 * torch.arange(1, hidden_BLH.shape[1] + 1, device=hidden_BLH.device)[None, :, None]
        return (hidden_BLH * weights_BL1).sum(1) / weights_BL1.sum(1)
    counts_B1 = counted_BL1.sum(1)
    return hidden_BLH.sum(1) / (counts_B1.sqrt() if mode == "mean_sqrt_len_tokens" else counts_B1)
