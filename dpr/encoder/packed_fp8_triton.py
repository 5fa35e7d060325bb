"""The operations of the pass with fp8 on a GPU: PyTorch's scaled products, and Triton kernels that make their inputs.

A kernel that computes the input of a product writes it in fp8 with the scales of its rows, so that rounding takes no
pass of its own. Shapes as in packed_fp8.py.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from dpr.encoder.packed import ACTS, Norm, Ops
from dpr.encoder.packed_fp8 import FP8, LARGEST, SMALLEST_ROW, Coded, CodedLinear, Product, coded_linear, plain_linear
from dpr.encoder.packed_triton import TritonOps, _normalised

PROGRAM_NUMBERS = 4096
"""Numbers that one program rounds: as many rows as make this, or one."""
_LARGEST: tl.constexpr = tl.constexpr(LARGEST)
_SMALLEST: tl.constexpr = tl.constexpr(SMALLEST_ROW)


class TritonFp8:
    """See packed_fp8.Fp8Ops."""

    def __init__(self) -> None:
        self.base: Ops = TritonOps()

    def prepared(self, linear: CodedLinear) -> CodedLinear:
        """See Fp8Ops."""
        return linear

    def code(self, x_TI: Tensor) -> Coded:
        """See Fp8Ops."""
        return self._rounded(x_TI, "none")

    def project(self, x: Coded, linear: CodedLinear) -> Tensor:
        """See Fp8Ops."""
        return _scaled_product(x, linear, linear.bias_J)

    def activate(self, x: Coded, linear: CodedLinear, act: str) -> Coded:
        """See Fp8Ops. Biases are added by the product, and the activation is computed where its result is rounded."""
        return self._rounded(self.project(x, linear), ACTS[act])

    def merge(
        self, x_TH: Tensor, y: Tensor | Coded, product: Product, norm: Norm, dtype: torch.dtype
    ) -> tuple[Tensor, Coded]:
        """See Fp8Ops. The kernel adds residual and bias to a product of fp8; one of bf16 adds the residual itself."""
        if isinstance(y, Coded):
            linear = coded_linear(product)
            return self._add_norm(x_TH, _scaled_product(y, linear, None), linear.bias_J, norm, dtype)
        plain = plain_linear(product)
        x_TH.addmm_(y, plain.weight.t())
        return self._add_norm(x_TH, None, plain.bias, norm, dtype)

    @staticmethod
    def _add_norm(
        x_TH: Tensor, y_TH: Tensor | None, bias_H: Tensor, norm: Norm, dtype: torch.dtype
    ) -> tuple[Tensor, Coded]:
        rows, size = x_TH.shape
        out_TH, coded = torch.empty_like(x_TH, dtype=dtype), _empty(x_TH)
        width = triton.next_power_of_2(size)
        at_once = max(1, PROGRAM_NUMBERS // width)
        _add_norm_code[(triton.cdiv(rows, at_once),)](
            x_TH, x_TH if y_TH is None else y_TH, bias_H, norm.weight_H, norm.bias_H, norm.eps, out_TH,
            coded.codes_TI, coded.scales_T, rows, size, width, at_once, y_TH is not None,
        )  # fmt: skip
        return out_TH, coded

    @staticmethod
    def _rounded(x_TI: Tensor, act: str) -> Coded:
        rows, size = x_TI.shape
        coded, width = _empty(x_TI), triton.next_power_of_2(size)
        at_once = max(1, PROGRAM_NUMBERS // width)
        _act_code[(triton.cdiv(rows, at_once),)](
            x_TI, coded.codes_TI, coded.scales_T, rows, size, width, at_once, act, num_warps=8
        )
        return coded


def _empty(x_TI: Tensor) -> Coded:
    scales_T = torch.empty((len(x_TI), 1), dtype=torch.float32, device=x_TI.device)
    return Coded(torch.empty_like(x_TI, dtype=FP8), scales_T)


def _scaled_product(x: Coded, linear: CodedLinear, bias_J: Tensor | None) -> Tensor:
    product: Tensor = torch._scaled_mm(
        x.codes_TI,
        linear.codes_JI.t(),
        scale_a=x.scales_T,
        scale_b=linear.scales_J,
        bias=bias_J,
        out_dtype=torch.bfloat16,
        use_fast_accum=True,
    )
    return product


@triton.jit
def _store_codes(x, codes, scales, row, at, rows, mask):
    scale = tl.maximum(tl.max(tl.where(mask, tl.abs(x), 0.0), 1), _SMALLEST) / _LARGEST
    tl.store(codes + at, (x / scale[:, None]).to(codes.dtype.element_ty), mask=mask)
    tl.store(scales + row, scale, mask=row < rows)


@triton.jit(do_not_specialize=["rows"])
def _add_norm_code(x, y, add, weight, bias, eps, out, codes, scales, rows, H: tl.constexpr, WIDTH: tl.constexpr,
                   ROWS: tl.constexpr, HAS_Y: tl.constexpr):  # fmt: skip
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    column = tl.arange(0, WIDTH)
    mask = (row[:, None] < rows) & (column[None, :] < H)
    at = row.to(tl.int64)[:, None] * H + column[None, :]
    total = tl.load(x + at, mask=mask, other=0.0).to(tl.float32)
    if HAS_Y:
        total += tl.load(y + at, mask=mask, other=0.0).to(tl.float32)
    total += tl.load(add + column, mask=column < H, other=0.0).to(tl.float32)[None, :]
    normed = _normalised(total, weight, bias, eps, column, H)
    tl.store(out + at, normed.to(out.dtype.element_ty), mask=mask)
    _store_codes(normed, codes, scales, row, at, rows, mask)


@triton.jit(do_not_specialize=["rows"])
def _act_code(x, codes, scales, rows, N: tl.constexpr, WIDTH: tl.constexpr, ROWS: tl.constexpr, ACT: tl.constexpr):
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    column = tl.arange(0, WIDTH)
    mask = (row[:, None] < rows) & (column[None, :] < N)
    at = row.to(tl.int64)[:, None] * N + column[None, :]
    value = tl.load(x + at, mask=mask, other=0.0).to(tl.float32)
    if ACT == "gelu":
        # tanh(z) = 2 sigmoid(2 z) - 1, so GELU with tanh is x sigmoid(2 z)
        value = value * tl.sigmoid(1.5957691216 * (value + 0.044715 * value * value * value))
    if ACT == "relu":
        value = tl.maximum(value, 0.0)
    _store_codes(value, codes, scales, row, at, rows, mask)
