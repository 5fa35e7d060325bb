"""Running a tower over packed batches, without padding.

Shapes: N rows, B rows of a batch, T tokens of a batch, D dimensions.
"""

import threading

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from dpr.encoder.fp8_bert import Fp8Bert
from dpr.encoder.network import Network
from dpr.encoder.packed import Ops, Packed, pool_packed
from dpr.encoder.packed_bert import PackedBert
from dpr.encoder.packed_cpu import CpuOps
from dpr.encoder.packed_fp8 import FP8, EmulatedFp8, Fp8Ops, multiplies_fp8
from dpr.encoder.packed_torch import TorchOps
from dpr.encoder.tokens import TokenBatch
from dpr.encoder.tower import TowerSpec


class PackedForward:
    """A Forward over rows that stand one after another, without padding.

    If several threads call it, a GPU never waits for the host.
    """

    def __init__(
        self, network: Network, tower: TowerSpec, device: torch.device, dtype: torch.dtype = torch.bfloat16
    ) -> None:
        self._bert: PackedBert | Fp8Bert
        if dtype == FP8:
            fp8 = default_fp8(device)
            self._ops, self._bert = fp8.base, Fp8Bert(network.body, fp8, tower.fp8_products, device)
        else:
            self._ops = default_ops(device, dtype)
            self._bert = PackedBert(network.body, self._ops, dtype, device)
        # the network itself is not kept, since its weights in float32 are no longer needed
        self._project, self._tower, self._device = network.project, tower, device
        self._launching = threading.Lock()

    def __call__(self, tokens: TokenBatch) -> Tensor:
        """See Forward."""
        packed = pack(tokens, self._device, self._ops.computed_tokens(len(tokens.ids_T)))
        if self._device.type != "cuda":
            with torch.inference_mode():
                return self._vectors(packed)
        # one batch's activations at a time; Triton uses the current device
        with torch.inference_mode(), torch.cuda.device(self._device), self._launching:
            vectors_BD = self._vectors(packed)
            host_BD = torch.empty(vectors_BD.shape, dtype=vectors_BD.dtype, pin_memory=True)
            host_BD.copy_(vectors_BD, non_blocking=True)
            copied = torch.cuda.Event()  # type: ignore[no-untyped-call]
            copied.record()
        copied.synchronize()
        return host_BD

    @staticmethod
    def batches(lengths_N: npt.NDArray[np.int64], tokens: int) -> list[npt.NDArray[np.int64]]:
        """See Forward. The longest rows come first, so that rows of one batch take equally long in attention."""
        order_N = np.argsort(-lengths_N, kind="stable")
        ends_N = np.cumsum(lengths_N[order_N])
        batches, first = [], 0
        while first < len(order_N):
            before = ends_N[first - 1] if first else 0
            last = max(first + 1, int(np.searchsorted(ends_N, before + tokens, "right")))
            batches.append(order_N[first:last])
            first = last
        return batches

    def _vectors(self, packed: Packed) -> Tensor:
        if self._tower.pooling == "cls":
            pooled_BH = self._bert.first(packed)
        else:
            pooled_BH = pool_packed(self._bert.hidden(packed), packed, self._tower.pooling)
        return self._project(pooled_BH)


def pack(tokens: TokenBatch, device: torch.device, computed_tokens: int = 0) -> Packed:
    """Copy a batch to the device; to a GPU in one asynchronous copy from pinned memory.

    Zeros follow up to `computed_tokens`.
    """
    lengths_B = tokens.lengths()
    places_T = np.arange(len(tokens.ids_T)) - np.repeat(tokens.offsets[:-1], lengths_B)
    further = np.zeros(max(0, computed_tokens - len(tokens.ids_T)), np.int32)
    by_token = (np.concatenate([array, further]) for array in (tokens.ids_T, tokens.types_T, places_T))
    arrays = (*by_token, tokens.offsets)
    together = torch.from_numpy(np.concatenate(arrays, dtype=np.int32, casting="unsafe"))
    if device.type == "cuda":
        together = together.pin_memory().to(device, non_blocking=True)
    ids_T, types_T, places, offsets = torch.split(together, [len(array) for array in arrays])
    return Packed(ids_T, types_T, places, offsets, int(lengths_B.max(initial=0)))


def default_ops(device: torch.device, dtype: torch.dtype) -> Ops:
    """Return Triton kernels for a GPU, oneDNN's bf16 products for a CPU, plain PyTorch for all else."""
    if device.type == "cpu" and dtype == torch.bfloat16:
        return CpuOps()
    if device.type != "cuda":
        return TorchOps()
    from dpr.encoder.packed_triton import TritonOps  # Triton comes with PyTorch's GPU builds only

    return TritonOps()


def default_fp8(device: torch.device) -> Fp8Ops:
    """Return the products of a GPU that has them, and emulated ones for all else."""
    if not multiplies_fp8(device):
        return EmulatedFp8(default_ops(device, torch.bfloat16))
    from dpr.encoder.packed_fp8_triton import TritonFp8

    return TritonFp8(device)
