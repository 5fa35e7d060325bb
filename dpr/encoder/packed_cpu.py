"""The packed operations for processors with bf16 products, through oneDNN. Shapes as in packed.py.

Weights are brought once into the layout that oneDNN's products need. These products are fused with activations and
residuals.

oneDNN compiles a product for each number of tokens, and keeps it: 5 to 100 ms and 2 to 20 MB for the four products of a
layer. So batches are computed as one of few numbers of tokens.
"""

import math
import threading

import torch
from torch import Tensor, nn

from dpr.encoder.packed import ACTS, Linear, Norm, Packed
from dpr.encoder.packed_torch import TorchOps

MAX_SCORES = 2**21
"""Attention scores computed at a time, 4 MB: a longer row goes through PyTorch's own attention, which stores none."""
TILE_TOKENS = 16
"""Tokens that a product computes at a time: fewer take as long."""
STEPS = 8
"""Numbers of tokens in use between a number and its double: at most an eighth more than needed is computed."""
FEW_ROWS = 2
"""Up to so many rows of one length, without biases, are faster in PyTorch's own attention than in the steps below."""
SAFE_SUMS = (2.0**-110, 2.0**120)
"""Sums of exponentials between these bounds lose almost nothing to the range of bf16, which is 2**-126 to 2**128."""
_ERF = "gelu"
"""The name of exact GELU, computed with erf; all other GELUs are the approximation with tanh."""


class CpuOps(TorchOps):
    """See packed.Ops; bf16 only."""

    def __init__(self) -> None:
        self._own = threading.local()

    def computed_tokens(self, tokens: int) -> int:
        """See Ops: multiples of a tile, and above some size of larger steps."""
        step = max(TILE_TOKENS, (1 << max(0, tokens - 1).bit_length()) // (2 * STEPS))
        return -(-tokens // step) * step

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
        return self._norm(summed_TH, norm).to(dtype)

    def prepared_bias(self, bias_NR: Tensor) -> Tensor:
        """See Ops."""
        return super().prepared_bias(bias_NR.to(torch.bfloat16))

    def attend(
        self,
        qkv_TJ: Tensor,
        packed: Packed,
        heads: int,
        queries: int,  # noqa: ARG002
        bias: Tensor | None = None,
    ) -> Tensor:
        """See Ops. Sequences of one length that are neighbours, as in sorted batches, are computed in one call."""
        offsets, lengths_B = packed.offsets.tolist(), packed.offsets.diff().tolist()
        out_TH = torch.empty((len(qkv_TJ), qkv_TJ.shape[1] // 3), dtype=qkv_TJ.dtype)
        first = 0
        while first < len(lengths_B):
            length, last = lengths_B[first], first + 1
            max_rows = max(1, MAX_SCORES // (heads * length * length))
            while last < min(len(lengths_B), first + max_rows) and lengths_B[last] == length:
                last += 1
            rows, shape = slice(offsets[first], offsets[last]), (last - first, length, heads, -1)
            q, k, v = (x.view(shape).transpose(1, 2) for x in qkv_TJ[rows].chunk(3, dim=1))
            near = None if bias is None else bias[:, :length, :length]
            self._attend_equal(q, k, v, near, out_TH[rows].view(shape).transpose(1, 2))
            first = last
        out_TH[offsets[-1] :] = 0.0
        return out_TH

    def _attend_equal(self, q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, out: Tensor) -> None:
        """Write attention over rows of equal length to `out`; all are (rows, heads, length, head size).

        But the bias is (heads, length, length).

        Softmax divides exponentials by their sum. Subtracting the greatest score first prevents overflow, but takes two
        thirds of the time of softmax. So it is done only if the sums show that it was necessary.
        """
        rows, heads, length, size = q.shape
        is_long = rows * heads * length * length > MAX_SCORES  # such a row is alone
        if is_long or (rows <= FEW_ROWS and bias is None):
            out.copy_(nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=bias))
            return
        q, k, v = (x.reshape(rows * heads, length, size) for x in (q, k, v))
        scores = self._scores(q, k, bias, math.log2(math.e)).exp2_()  # exp2 is faster than exp
        sums = scores.sum(-1, keepdim=True)
        lowest, highest = sums.aminmax()
        if lowest > SAFE_SUMS[0] and highest < SAFE_SUMS[1]:
            weighted = torch.bmm(scores, v)
            if weighted.sum().isfinite():  # not finite: large values times large exponentials overflow
                torch.div(weighted.view_as(out), sums.view(rows, heads, length, 1), out=out)
                return
        out.copy_(torch.bmm(self._scores(q, k, bias, 1.0).softmax(-1), v).view_as(out))

    def _scores(self, q: Tensor, k: Tensor, bias: Tensor | None, factor: float) -> Tensor:
        """Return `factor` times the scores of (rows × heads, length, head size) in this thread's buffer."""
        both, length, size = q.shape
        scores = self._buffer()[: both * length * length].view(both, length, length)
        if bias is not None:
            scores.view(-1, *bias.shape).copy_(bias)
        beta = 0.0 if bias is None else factor
        return torch.baddbmm(scores, q, k.transpose(1, 2), beta=beta, alpha=factor / math.sqrt(size), out=scores)

    def _buffer(self) -> Tensor:
        """Return this thread's memory for scores: allocating it each time would cost as much as computing them."""
        if not hasattr(self._own, "buffer"):
            self._own.buffer = torch.empty(MAX_SCORES, dtype=torch.bfloat16)
        buffer: Tensor = self._own.buffer
        return buffer


def _product(x_TH: Tensor, linear: Linear, act: str, form: str = "") -> Tensor:
    product: Tensor = torch.ops.mkldnn._linear_pointwise(x_TH, linear.weight, linear.bias, act, [], form)
    return product
