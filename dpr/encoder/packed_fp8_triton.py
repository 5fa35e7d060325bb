"""The operations of the pass with fp8 on a GPU: products of cuBLASLt, and Triton kernels that make their inputs.

A kernel that computes the input of a product writes it in fp8, so that rounding takes no pass of its own. Shapes as in
packed_fp8.py.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from dpr.encoder.cublaslt import Fp8Products
from dpr.encoder.packed import ACTS, Norm, Ops, Packed
from dpr.encoder.packed_fp8 import FP8, Coded, CodedLinear, Product, coded_linear, normed_scale, plain_linear
from dpr.encoder.packed_triton import ROWS, TritonOps, attend_into, standardised

BLOCK = 4096
"""Numbers that one program rounds."""


class TritonFp8:
    """See packed_fp8.Fp8Ops."""

    def __init__(self, device: torch.device) -> None:
        self.base: Ops = TritonOps()
        self._products, self._device = Fp8Products(device), device
        self._factors = dict[float, Tensor]()

    def prepared(self, linear: CodedLinear) -> CodedLinear:
        """See Fp8Ops."""
        return linear

    def code(self, x_TI: Tensor, scale: float) -> Coded:
        """See Fp8Ops."""
        codes_TI = torch.empty_like(x_TI, dtype=FP8)
        _code[(triton.cdiv(x_TI.numel(), BLOCK),)](x_TI, codes_TI, 1.0 / scale, x_TI.numel(), BLOCK)
        return Coded(codes_TI, scale)

    def attend(
        self, qkv_TJ: Tensor, packed: Packed, heads: int, queries: int, bias: Tensor | None, scale: float
    ) -> Coded:
        """See Fp8Ops."""
        codes_TH = self._empty(len(qkv_TJ), qkv_TJ.shape[1] // 3, FP8)
        attend_into(codes_TH, qkv_TJ, packed, heads, queries, bias, 1.0 / scale)
        return Coded(codes_TH, scale)

    def project(self, x: Coded, linear: CodedLinear) -> Tensor:
        """See Fp8Ops."""
        out_TJ = self._empty(len(x.codes_TI), len(linear.codes_JI), torch.bfloat16)
        return self._products.multiply(
            x.codes_TI, linear.codes_JI, x.scale * linear.scale, out_TJ, bias_J=linear.bias_J
        )

    def activate(self, x: Coded, linear: CodedLinear, act: str, scale: float) -> Coded:
        """See Fp8Ops."""
        codes_TF = self._empty(len(x.codes_TI), len(linear.codes_JI), FP8)
        factor = self._factors.get(scale)
        if factor is None:
            factor = self._factors[scale] = torch.tensor(1.0 / scale, device=self._device)
        self._products.multiply(
            x.codes_TI, linear.codes_JI, x.scale * linear.scale, codes_TF,
            bias_J=linear.bias_J, act=ACTS[act], out_factor=factor,
        )  # fmt: skip
        return Coded(codes_TF, scale)

    def add(self, x_TH: Tensor, y: Tensor | Coded, product: Product) -> Tensor:
        """See Fp8Ops."""
        if isinstance(y, Coded):
            linear = coded_linear(product)
            return self._products.multiply(y.codes_TI, linear.codes_JI, y.scale * linear.scale, x_TH, add=True)
        return x_TH.addmm_(y, plain_linear(product).weight.t())

    def normalise(self, x_TH: Tensor, bias_H: Tensor, norm: Norm, dtype: torch.dtype) -> tuple[Tensor, Coded]:
        """See Fp8Ops."""
        rows, size = x_TH.shape
        out_TH, codes_TH, scale = self._empty(rows, size, dtype), self._empty(rows, size, FP8), normed_scale(size)
        _add_norm_code[(triton.cdiv(rows, ROWS),)](
            x_TH, bias_H, norm.weight_H, norm.bias_H, norm.eps, 1.0 / scale, out_TH, codes_TH,
            rows, size, triton.next_power_of_2(size), ROWS,
        )  # fmt: skip
        return out_TH, Coded(codes_TH, scale)

    def _empty(self, rows: int, columns: int, dtype: torch.dtype) -> Tensor:
        return torch.empty((rows, columns), dtype=dtype, device=self._device)


@triton.jit(do_not_specialize=["rows"])
def _add_norm_code(x, add, weight, bias, eps, factor, out, codes, rows, H: tl.constexpr, WIDTH: tl.constexpr,
                   ROWS: tl.constexpr):  # fmt: skip
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    column = tl.arange(0, WIDTH)
    inside = column < H
    mask = (row[:, None] < rows) & inside[None, :]
    at = row.to(tl.int64)[:, None] * H + column[None, :]
    total = tl.load(x + at, mask=mask, other=0.0).to(tl.float32)
    total += tl.load(add + column, mask=inside, other=0.0).to(tl.float32)[None, :]
    normed = standardised(total, eps, column, H)
    tl.store(codes + at, (normed * factor).to(codes.dtype.element_ty), mask=mask)
    weight_H = tl.load(weight + column, mask=inside, other=0.0)
    bias_H = tl.load(bias + column, mask=inside, other=0.0)
    tl.store(out + at, (normed * weight_H[None, :] + bias_H[None, :]).to(out.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=["count"])
def _code(x, codes, factor, count, BLOCK: tl.constexpr):
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    value = tl.load(x + at, mask=at < count, other=0.0).to(tl.float32)
    tl.store(codes + at, (value * factor).to(codes.dtype.element_ty), mask=at < count)
