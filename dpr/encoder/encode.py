"""Encoding: tokens in, one vector a row out, in batches of equal work.

Shapes: N rows, B rows of a batch, L tokens of its longest row, H hidden size, D dimensions.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch

from dpr.encoder.model import Tower, load_tower
from dpr.encoder.spec import EncoderSpec, TowerSpec
from dpr.encoder.tokens import TokenBatch, TowerTokenizer

CPU_TOKENS = 2048
"""Padded tokens of a batch on a CPU: activations of that size stay in its caches."""
GPU_TOKENS = 65_536
LEAST_COSINE = 0.999
"""What a bf16 vector must keep of the fp32 one."""
CALIBRATION_ROWS, CALIBRATION_TOKENS = 8, 128


@dataclass(frozen=True)
class Compute:
    """How to compute; none of it changes what is computed beyond rounding."""

    precision: Literal["auto", "fp32", "bf16"] = "auto"
    tokens_per_batch: int | None = None
    threads: int | None = None
    """CPU threads; null: as many as PyTorch takes."""
    device: str | None = None
    """Null: a GPU where there is one."""


class TowerEncoder:
    """One tower, loaded and ready. The same tokens and `compute` give the same bits on the same kind of machine."""

    def __init__(self, tower: TowerSpec, compute: Compute) -> None:
        if compute.threads is not None:
            torch.set_num_threads(compute.threads)
        self._device = torch.device(compute.device or ("cuda" if torch.cuda.is_available() else "cpu"))
        self._tower: Tower = load_tower(tower).to(self._device).eval()
        self.dim = tower.dim
        dtype, self.choice = _choose_precision(self._tower, compute.precision, self._device)
        """What was chosen, and why."""
        self._tower.to(dtype)
        self._tokens = compute.tokens_per_batch or (GPU_TOKENS if self._device.type == "cuda" else CPU_TOKENS)

    def encode(self, tokens: TokenBatch, dtype: npt.DTypeLike = np.float16) -> npt.NDArray[Any]:
        """Vectors (N, D) in the order of the rows. A row that overflows comes out not finite, for the caller to find."""
        vectors_ND = np.empty((len(tokens), self.dim), dtype)
        with torch.inference_mode():
            for rows_B in _batches(tokens.lengths_N, self._tokens):
                ids_BL, types_BL, mask_BL = _padded(tokens.select(rows_B))
                inputs = [x.to(self._device, non_blocking=True) for x in (ids_BL, types_BL)]
                mask = None if mask_BL is None else mask_BL.to(self._device)
                vectors_ND[rows_B] = self._tower(*inputs, mask).float().cpu().numpy()
        return vectors_ND


class QuestionEncoder:
    """Questions to vectors (paper: E_Q)."""

    def __init__(self, spec: EncoderSpec, compute: Compute) -> None:
        self._tokenizer = TowerTokenizer(spec.question)
        self._encoder = TowerEncoder(spec.question, compute)

    def encode(self, questions: Sequence[str]) -> npt.NDArray[np.float32]:
        """Vectors (Q, D) float32."""
        return self._encoder.encode(self._tokenizer.questions(questions), np.float32)


class PassageEncoder:
    """Passages to vectors (paper: E_P)."""

    def __init__(self, spec: EncoderSpec, compute: Compute) -> None:
        self._tokenizer = TowerTokenizer(spec.passage)
        self._encoder = TowerEncoder(spec.passage, compute)

    def encode(self, titles: Sequence[str], texts: Sequence[str]) -> npt.NDArray[np.float16]:
        """Vectors (N, D) float16."""
        return self._encoder.encode(self._tokenizer.passages(titles, texts))


def _batches(lengths_N: npt.NDArray[np.int64], tokens: int) -> Iterator[npt.NDArray[np.int64]]:
    """Row numbers of batches, longest rows first, each of at most `tokens` padded tokens (or one row)."""
    order = np.argsort(-lengths_N, kind="stable")
    first = 0
    while first < len(order):
        longest = max(int(lengths_N[order[first]]), 1)
        yield order[first : first + max(1, tokens // longest)]
        first += max(1, tokens // longest)


def _padded(tokens: TokenBatch) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
    """Ids and types (B, L) int64, and the mask (B, L) bool of real tokens, or None where there is no padding."""
    lengths = tokens.lengths_N
    mask_BL = np.arange(lengths.max())[None, :] < lengths[:, None]
    ids_BL, types_BL = np.zeros(mask_BL.shape, np.int64), np.zeros(mask_BL.shape, np.int64)
    ids_BL[mask_BL], types_BL[mask_BL] = tokens.ids_T, tokens.types_T
    mask = None if mask_BL.all() else torch.from_numpy(mask_BL)
    return torch.from_numpy(ids_BL), torch.from_numpy(types_BL), mask


def _choose_precision(tower: Tower, wanted: str, device: torch.device) -> tuple[torch.dtype, str]:
    """Never by timing: the same machine must always choose the same, or a run continued later would differ."""
    if wanted != "auto":
        return {"fp32": torch.float32, "bf16": torch.bfloat16}[wanted], f"{wanted}: the recipe says so"
    if not _multiplies_bf16(device):
        return torch.float32, "fp32: this processor has no bf16 products"
    generator = torch.Generator().manual_seed(0)
    shape = (CALIBRATION_ROWS, min(CALIBRATION_TOKENS, tower.positions))
    ids_BL = torch.randint(1000 % tower.vocabulary, tower.vocabulary, shape, generator=generator)
    inputs = [x.to(device) for x in (ids_BL, torch.zeros_like(ids_BL))]
    with torch.inference_mode():
        exact_BD = tower(*inputs, None).float()
        rounded_BD = tower.to(torch.bfloat16)(*inputs, None).float()
    cosine = float(torch.cosine_similarity(exact_BD, rounded_BD).min())
    if cosine < LEAST_COSINE:
        return torch.float32, f"fp32: bf16 keeps a cosine of {cosine:.5f} only, {LEAST_COSINE} is demanded"
    return torch.bfloat16, f"bf16: this processor has bf16 products, and they keep a cosine of {cosine:.5f}"


def _multiplies_bf16(device: torch.device) -> bool:
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())
