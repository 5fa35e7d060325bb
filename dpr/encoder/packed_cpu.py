"""The packed operations for processors with bf16 products, through oneDNN. Shapes as in packed.py.

Weights are laid out once as its products want them, which compute activations and residuals, too.
"""

import math
import threading

import torch
from torch import Tensor, nn

from dpr.encoder.packed import ACTS, Linear, Norm, Packed
from dpr.encoder.packed_torch import TorchOps

SCORES = 2**21
"""Attention scores computed at a time, 4 MB: beyond, a row goes through PyTorch's own attention, without them."""
_ERF = "gelu"
"""Of the activations that are GELU the one without tanh."""


class CpuOps(TorchOps):
    """See packed.Ops; bf16 only."""

    def __init__(self) -> None:
        self._own = threading.local()

    def prepared(self, linear: Linear) -> Linear:
        """See Ops."""
        return Linear(torch.ops.mkldnn._reorder_linear_weight(linear.weight, None), linear.bias)

    def project(self, x_TH: Tensor, linear: Linear) -> Tensor:
        """See Ops."""
        return _product(x_TH, linear, "none")

    def activate(self, x_TH: Tensor, linear: Linear, act: str) -> Tensor:
        """See Ops."""
        return _product(x_TH, linear, ACTS[act], "none" if act == _ERF else "tanh")

    def merge(self, x_TH: Tensor, y_TJ: Tensor, linear: Linear, norm: Norm, dtype: torch.dtype) -> Tensor:
        """See Ops."""
        summed_TH = torch.ops.mkldnn._linear_pointwise.binary(y_TJ, x_TH, linear.weight, linear.bias, "add")
        weight_H, bias_H = norm.weight_H.to(summed_TH.dtype), norm.bias_H.to(summed_TH.dtype)
        return nn.functional.layer_norm(summed_TH, weight_H.shape, weight_H, bias_H, norm.eps).to(dtype)

    def attend(self, qkv_TJ: Tensor, packed: Packed, heads: int, queries: int) -> Tensor:  # noqa: ARG002
        """See Ops. Sequences of one length that stand together, as sorted ones do, go in one call."""
        offsets, lengths_B = packed.offsets.tolist(), packed.offsets.diff().tolist()
        out_TH = torch.empty((len(qkv_TJ), qkv_TJ.shape[1] // 3), dtype=qkv_TJ.dtype)
        first = 0
        while first < len(lengths_B):
            length, last = lengths_B[first], first + 1
            most = max(1, SCORES // (heads * length * length))
            while last < min(len(lengths_B), first + most) and lengths_B[last] == length:
                last += 1
            rows = slice(offsets[first], offsets[last])
            q, k, v = qkv_TJ[rows].view(last - first, length, 3, heads, -1).permute(2, 0, 3, 1, 4)
            attended = self._attended(q, k, v)
            out_TH[rows] = attended.transpose(1, 2).reshape(-1, out_TH.shape[1])
            first = last
        return out_TH

    def _attended(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Attention over rows of equal length, all (rows, heads, length, head size)."""
        rows, heads, length, size = q.shape
        if rows * heads * length * length > SCORES:  # one long row
            return nn.functional.scaled_dot_product_attention(q, k, v)
        q, k, v = (x.reshape(rows * heads, length, size) for x in (q, k, v))
        scores, weights = (
            buffer[: rows * heads * length * length].view(rows * heads, length, length) for buffer in self._buffers()
        )
        torch.baddbmm(scores, q, k.transpose(1, 2), beta=0, alpha=1 / math.sqrt(size), out=scores)
        torch.ops.aten._softmax.out(scores, -1, False, out=weights)
        return torch.bmm(weights, v).view(rows, heads, length, size)

    def _buffers(self) -> tuple[Tensor, Tensor]:
        """Room for scores and weights of this thread: fresh memory for them would cost as much as computing them."""
        if not hasattr(self._own, "buffers"):
            self._own.buffers = torch.empty((2, SCORES), dtype=torch.bfloat16).unbind()
        buffers: tuple[Tensor, Tensor] = self._own.buffers
        return buffers


def _product(x_TH: Tensor, linear: Linear, act: str, form: str = "") -> Tensor:
    product: Tensor = torch.ops.mkldnn._linear_pointwise(x_TH, linear.weight, linear.bias, act, [], form)
    return product
