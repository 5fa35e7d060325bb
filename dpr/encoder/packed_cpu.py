"""The packed operations for processors with bf16 products, through oneDNN. Shapes as in packed.py.

Weights are laid out once as its products want them, which compute activations and residuals, too.
"""

import torch
from torch import Tensor, nn

from dpr.encoder.packed import ACTS, Linear, Norm, Packed
from dpr.encoder.packed_torch import TorchOps

_ERF = "gelu"
"""Of the activations that are GELU the one without tanh."""


class CpuOps(TorchOps):
    """See packed.Ops; bf16 only."""

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
            last = first + 1
            while last < len(lengths_B) and lengths_B[last] == lengths_B[first]:
                last += 1
            rows = slice(offsets[first], offsets[last])
            q, k, v = qkv_TJ[rows].view(last - first, lengths_B[first], 3, heads, -1).permute(2, 0, 3, 1, 4)
            attended = nn.functional.scaled_dot_product_attention(q, k, v)
            out_TH[rows] = attended.transpose(1, 2).reshape(-1, out_TH.shape[1])
            first = last
        return out_TH


def _product(x_TH: Tensor, linear: Linear, act: str, form: str = "") -> Tensor:
    product: Tensor = torch.ops.mkldnn._linear_pointwise(x_TH, linear.weight, linear.bias, act, [], form)
    return product
