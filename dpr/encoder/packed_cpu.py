"""The packed operations for processors with bf16 products, through oneDNN. Shapes as in packed.py.

Weights are laid out once as its products want them, which compute activations and residuals, too.
"""

import math
import threading

import torch
from torch import Tensor, nn

from dpr.encoder.packed import ACTS, Entry, Linear, Norm, Packed, Tables
from dpr.encoder.packed_torch import TorchOps

SCORES = 2**21
"""Attention scores computed at a time, 4 MB: beyond, a row goes through PyTorch's own attention, without them."""
MOST_TABLE = 2**28
"""Bytes of the first layer's product with all words and positions: 146 MB for BERT-base."""
SUMS = (2.0**-110, 2.0**120)
"""Sums of exponentials within these lose next to nothing to bf16's range, which ends at 2**-126 and 2**128."""
_ERF = "gelu"
"""Of the activations that are GELU the one without tanh."""


class CpuOps(TorchOps):
    """See packed.Ops; bf16 only."""

    def __init__(self) -> None:
        self._own = threading.local()

    def prepared(self, linear: Linear) -> Linear:
        """See Ops."""
        return Linear(torch.ops.mkldnn._reorder_linear_weight(linear.weight, None), linear.bias)

    def entry(self, tables: Tables, exact: Linear, prepared: Linear, dtype: torch.dtype) -> Entry:
        """See Ops. The first layer's product is looked up, if there is room for that.

        Its input is a normalised sum of table rows, ((w + p) - mean) / deviation * g + b, so each row's share of the
        product can be known beforehand: what is left is a sum of two rows, over the deviation, and a constant.
        """
        places = len(tables.types) * len(tables.positions)
        if (len(tables.words) + places + 1) * len(exact.weight) * dtype.itemsize > MOST_TABLE:
            return super().entry(tables, exact, prepared, dtype)
        norm, spots = tables.norm, tables.types[:, None] + tables.positions
        # what words have in common goes over to the places, which may cancel it: afterwards both are rounded; and a
        # word whose weights are not numbers spoils no other
        typical_H = tables.words.nan_to_num(0.0, 0.0, 0.0).mean(0)
        rows = torch.cat([tables.words - typical_H, spots.flatten(0, 1) + typical_H])
        shares = ((rows - rows.mean(1, keepdim=True)) * norm.weight_H) @ exact.weight.t()
        constant = exact.weight @ norm.bias_H + exact.bias
        table = torch.cat([shares.to(dtype), constant[None].to(dtype)])

        def enter(packed: Packed) -> tuple[Tensor, Tensor]:
            x_TH, _, inverse_T1 = torch.native_layer_norm(
                self._summed(tables, packed), norm.weight_H.shape, norm.weight_H, norm.bias_H, norm.eps
            )
            spots_T = len(tables.words) + packed.types_T * len(tables.positions) + packed.places_T
            rows_T3 = torch.stack([packed.ids_T, spots_T, torch.full_like(spots_T, len(table) - 1)], 1).long()
            weights_T3 = torch.cat([inverse_T1, inverse_T1, torch.ones_like(inverse_T1)], 1).to(dtype)
            qkv_TJ = nn.functional.embedding_bag(rows_T3, table, mode="sum", per_sample_weights=weights_T3)
            return x_TH.to(dtype), qkv_TJ

        return enter

    def project(self, x_TH: Tensor, linear: Linear) -> Tensor:
        """See Ops."""
        return _product(x_TH, linear, "none")

    def activate(self, x_TH: Tensor, linear: Linear, act: str) -> Tensor:
        """See Ops."""
        return _product(x_TH, linear, ACTS[act], "none" if act == _ERF else "tanh")

    def merge(self, x_TH: Tensor, y_TJ: Tensor, linear: Linear, norm: Norm, dtype: torch.dtype) -> Tensor:
        """See Ops."""
        summed_TH = torch.ops.mkldnn._linear_pointwise.binary(y_TJ, x_TH, linear.weight, linear.bias, "add")
        return self._norm(summed_TH, norm).to(dtype)

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
            rows, shape = slice(offsets[first], offsets[last]), (last - first, length, heads, -1)
            q, k, v = (x.view(shape).transpose(1, 2) for x in qkv_TJ[rows].chunk(3, dim=1))
            self._attended(q, k, v, out_TH[rows].view(shape).transpose(1, 2))
            first = last
        return out_TH

    def _attended(self, q: Tensor, k: Tensor, v: Tensor, out: Tensor) -> None:
        """Attention over rows of equal length, all (rows, heads, length, head size), written to `out`.

        Softmax is exponentials over their sum; that the greatest score is first taken off all keeps them from overflow,
        but costs two thirds of its time, so it is done where the sums show that it was needed.
        """
        rows, heads, length, size = q.shape
        if rows * heads * length * length > SCORES:  # one long row
            out.copy_(nn.functional.scaled_dot_product_attention(q, k, v))
            return
        q, k, v = (x.reshape(rows * heads, length, size) for x in (q, k, v))
        weights = self._buffer()[: rows * heads * length * length].view(rows * heads, length, length)
        scale = math.log2(math.e) / math.sqrt(size)
        torch.baddbmm(weights, q, k.transpose(1, 2), beta=0, alpha=scale, out=weights).exp2_()
        sums = weights.sum(-1, keepdim=True)
        least, greatest = sums.aminmax()
        if least > SUMS[0] and greatest < SUMS[1]:
            found = torch.bmm(weights, v)
            if found.sum().isfinite():  # else values as large as the sums are near the end of the range
                torch.div(found.view_as(out), sums.view(rows, heads, length, 1), out=out)
                return
        scores = torch.baddbmm(weights, q, k.transpose(1, 2), beta=0, alpha=1 / math.sqrt(size), out=weights)
        out.copy_(torch.bmm(scores.softmax(-1), v).view_as(out))

    def _buffer(self) -> Tensor:
        """Room for the scores of this thread: fresh memory for them would cost as much as computing them."""
        if not hasattr(self._own, "buffer"):
            self._own.buffer = torch.empty(SCORES, dtype=torch.bfloat16)
        buffer: Tensor = self._own.buffer
        return buffer


def _product(x_TH: Tensor, linear: Linear, act: str, form: str = "") -> Tensor:
    product: Tensor = torch.ops.mkldnn._linear_pointwise(x_TH, linear.weight, linear.bias, act, [], form)
    return product
