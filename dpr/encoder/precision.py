"""Which arithmetic to encode in: bf16 where the processor multiplies it and the vectors stay the same.

Never by timing: a machine must choose the same every time, or a run that is continued would differ from one that was
not. Shapes: B rows, D dimensions.
"""

import copy
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from dpr.encoder.model import Network
from dpr.encoder.padded import PaddedForward
from dpr.encoder.spec import TowerSpec
from dpr.encoder.tokens import TokenBatch

LEAST_COSINE = 0.999
"""What every vector in bf16 must keep of the one in fp32."""
ROWS, ROW_TOKENS = 8, 64
"""Size of the comparison."""


@dataclass(frozen=True)
class Precision:
    """What was chosen, and why."""

    dtype: torch.dtype
    said: str


def choose_precision(network: Network, tower: TowerSpec, wanted: str, device: torch.device) -> Precision:
    """fp32 or bf16 as `wanted`; `auto` compares the two on `network` (float32, on `device`), which stays as it was."""
    if wanted != "auto":
        dtype = {"fp32": torch.float32, "bf16": torch.bfloat16}[wanted]
        return Precision(dtype, f"{wanted}, as asked for")
    if not multiplies_bf16(device):
        return Precision(torch.float32, "fp32, because this processor has no bf16 products")
    tokens = _made_up_tokens(network.vocabulary, min(ROW_TOKENS, tower.max_tokens))
    # a copy: weights that were bf16 once would stay rounded
    rounded = copy.deepcopy(network).to(torch.bfloat16, device)
    with torch.inference_mode():
        exact_BD, rounded_BD = (PaddedForward(each, tower, device)(tokens) for each in (network, rounded))
    return judge(float(nn.functional.cosine_similarity(exact_BD, rounded_BD).min()))


def judge(cosine: float) -> Precision:
    """bf16 if its vectors keep `cosine` (the least of them) with those of fp32, else fp32; NaN is too little."""
    if cosine >= LEAST_COSINE:
        return Precision(
            torch.bfloat16, f"bf16, which this processor multiplies, at a cosine of {cosine:.5f} with fp32"
        )
    return Precision(torch.float32, f"fp32, because bf16 keeps a cosine of {cosine:.5f} only, under {LEAST_COSINE}")


def multiplies_bf16(device: torch.device) -> bool:
    """Whether the processor has bf16 products of its own; emulated ones are many times slower than fp32."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())


def _made_up_tokens(vocabulary: int, length: int) -> TokenBatch:
    ids_T = np.random.default_rng(0).integers(0, vocabulary, ROWS * length, dtype=np.int32)
    return TokenBatch(ids_T, np.zeros(len(ids_T), np.uint8), np.arange(0, len(ids_T) + 1, length))
