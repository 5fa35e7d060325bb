"""The choice of arithmetic: bf16 where the processor has products of bf16 and vectors stay nearly the same.

Nothing is timed: a machine must choose the same every time, because a run that is continued must not mix vectors of two
precisions. Shapes: B rows, D dimensions.
"""

import copy
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from dpr.encoder.network import Network
from dpr.encoder.packed_fp8 import FP8, multiplies_fp8
from dpr.encoder.padded import PaddedForward
from dpr.encoder.tokens import TokenBatch
from dpr.encoder.tower import TowerSpec

MIN_COSINE = 0.999
"""The least cosine between a vector in bf16 and the same one in fp32."""
ROWS, ROW_TOKENS = 8, 64
"""Rows that are compared, and tokens of each."""


@dataclass(frozen=True)
class Precision:
    """The arithmetic that was chosen."""

    dtype: torch.dtype
    reason: str
    """Its name and why it was chosen, for people."""


def choose_precision(network: Network, tower: TowerSpec, wanted: str, device: torch.device) -> Precision:
    """Choose fp32, bf16 or fp8: the one that is `wanted`, or, if that is `auto`, fp32 or bf16 by comparing vectors.

    `network` is float32 and on `device`; it is not changed.
    """
    if wanted == "fp8" and tower.fp8_products:
        products = ", ".join(tower.fp8_products)
        how = "" if multiplies_fp8(device) else ", which this processor has no products of, so that they are emulated"
        return Precision(FP8, f"fp8 ({products}), as requested{how}")
    if wanted not in ("auto", "fp8"):
        dtype = {"fp32": torch.float32, "bf16": torch.bfloat16}[wanted]
        return Precision(dtype, f"{wanted}, as requested")
    if not multiplies_bf16(device):
        return Precision(torch.float32, "fp32, because this processor has no bf16 products")
    tokens = _random_tokens(network.vocabulary, min(ROW_TOKENS, tower.max_tokens))
    # a copy, because weights that were bf16 once stay rounded
    rounded = copy.deepcopy(network).to(torch.bfloat16, device)
    with torch.inference_mode():
        exact_BD, rounded_BD = (PaddedForward(each, tower, device)(tokens) for each in (network, rounded))
    return judge_bf16(float(nn.functional.cosine_similarity(exact_BD, rounded_BD).min()))


def judge_bf16(cosine: float) -> Precision:
    """Choose bf16 if `cosine`, the lowest between vectors in bf16 and in fp32, is high enough; NaN is not."""
    if cosine >= MIN_COSINE:
        return Precision(torch.bfloat16, f"bf16, because its vectors have a cosine of {cosine:.5f} or more with fp32")
    return Precision(
        torch.float32, f"fp32, because a vector in bf16 has a cosine of {cosine:.5f} with it, under {MIN_COSINE}"
    )


def multiplies_bf16(device: torch.device) -> bool:
    """Return whether the processor has bf16 products of its own; emulated ones are many times slower than fp32."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())


def _random_tokens(vocabulary: int, length: int) -> TokenBatch:
    ids_T = np.random.default_rng(0).integers(0, vocabulary, ROWS * length, dtype=np.int32)
    return TokenBatch(ids_T, np.zeros(len(ids_T), np.uint8), np.arange(0, len(ids_T) + 1, length))
