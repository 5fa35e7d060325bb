"""The product `up` with GELU and rounding to fp8 in one kernel, to see whether it is faster than a pass of its own.

The scale of a row must be known before the product is: it is a bound of the row's largest number, the length of the
input times that of the longest weight row, plus the largest bias, over 448. GELU makes no number larger. The bound is
several times too large, which a floating-point number bears: it costs the smallest numbers their digits.

Shapes as in dpr/encoder/packed_fp8.py; M rows and N columns of a tile.
"""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from dpr.encoder.packed import ACTS
from dpr.encoder.packed_fp8 import FP8, LARGEST, Coded, CodedLinear, EmulatedFp8, activated
from dpr.encoder.packed_fp8_triton import TritonFp8

ROUNDED_UP = 1.0625
"""Rounding to fp8 makes a number larger by this at most."""


@dataclass(frozen=True)
class Tiles:
    """How the kernel divides its work."""

    rows: int
    columns: int
    inputs: int
    """Inputs that are read at a time."""
    warps: int
    stages: int
    per_processor: int
    """Programs of a multiprocessor: with two, one multiplies while the other computes GELU."""


SMALL, LARGE = Tiles(128, 128, 64, 4, 4, 2), Tiles(128, 256, 128, 8, 3, 1)


def bounds(x: Coded, linear: CodedLinear) -> Tensor:
    """Return the scales (T, 1) of the product's rows, by bound, in plain PyTorch."""
    lengths_T = x.codes_TI.float().norm(dim=1, keepdim=True) * x.scales_T
    longest = (linear.codes_JI.float().norm(dim=1) * linear.scales_J[0]).max()
    return (lengths_T * longest + linear.bias_J.float().abs().max()) * ROUNDED_UP / LARGEST


class BoundedFp8(EmulatedFp8):
    """Emulated fp8 with the scales of the fused kernel."""

    def activate(self, x: Coded, linear: CodedLinear, act: str) -> Coded:
        """See Fp8Ops."""
        scales_T = bounds(x, linear)
        return Coded((activated(self.project(x, linear).float(), act) / scales_T).to(FP8), scales_T)


class FusedUp(TritonFp8):
    """Triton's operations with `up` fused."""

    def __init__(self, tiles: Tiles = SMALL) -> None:
        super().__init__()
        self._tiles = tiles
        self._longest: dict[int, tuple[Tensor, Tensor]] = {}

    def activate(self, x: Coded, linear: CodedLinear, act: str) -> Coded:
        """See Fp8Ops."""
        rows, size = x.codes_TI.shape
        inner = len(linear.codes_JI)
        codes_TF = torch.empty((rows, inner), dtype=FP8, device=x.codes_TI.device)
        scales_T = torch.empty((rows, 1), dtype=torch.float32, device=x.codes_TI.device)
        longest, largest = self._limits(linear)
        _bounds[(rows,)](x.codes_TI, x.scales_T, longest, largest, scales_T, size, triton.next_power_of_2(size))
        tiles, processors = self._tiles, torch.cuda.get_device_properties(x.codes_TI.device).multi_processor_count
        count = triton.cdiv(rows, tiles.rows) * (inner // tiles.columns)
        _up[(min(tiles.per_processor * processors, count),)](
            TensorDescriptor.from_tensor(x.codes_TI, [tiles.rows, tiles.inputs]),
            TensorDescriptor.from_tensor(linear.codes_JI, [tiles.columns, tiles.inputs]),
            TensorDescriptor.from_tensor(codes_TF, [tiles.rows, tiles.columns]),
            x.scales_T, linear.scales_J, linear.bias_J, scales_T, rows, inner, size, ACTS[act] == "gelu",
            tiles.rows, tiles.columns, tiles.inputs, num_warps=tiles.warps, num_stages=tiles.stages,
        )  # fmt: skip
        return Coded(codes_TF, scales_T)

    def _limits(self, linear: CodedLinear) -> tuple[Tensor, Tensor]:
        """Return the length of the longest weight row and the largest bias; computed once a layer."""
        found = self._longest.get(id(linear))
        if found is None:
            longest = (linear.codes_JI.float().norm(dim=1) * linear.scales_J[0]).max()
            found = self._longest[id(linear)] = longest, linear.bias_J.float().abs().max()
        return found


@triton.jit
def _bounds(codes, scales, longest, largest, out, H: tl.constexpr, WIDTH: tl.constexpr):
    row = tl.program_id(0)
    column = tl.arange(0, WIDTH)
    x = tl.load(codes + row.to(tl.int64) * H + column, mask=column < H, other=0.0).to(tl.float32)
    length = tl.sqrt(tl.sum(x * x, 0)) * tl.load(scales + row)
    # 1.0625 and 448: ROUNDED_UP and LARGEST
    tl.store(out + row, (length * tl.load(longest) + tl.load(largest)) * 1.0625 / 448.0)


@triton.jit(do_not_specialize=["rows"])
def _up(x, weight, out, x_scales, weight_scales, bias, out_scales, rows, F: tl.constexpr, K: tl.constexpr,
        GELU: tl.constexpr, M: tl.constexpr, N: tl.constexpr, PART: tl.constexpr):  # fmt: skip
    columns: tl.constexpr = F // N
    tiles = tl.cdiv(rows, M) * columns
    for tile in tl.range(tl.program_id(0), tiles, tl.num_programs(0)):
        # programs that run together read the same rows of x, and all of the weight, which the cache holds
        first_row = tile // columns * M
        first_column = tile % columns * N
        sums = tl.zeros((M, N), tl.float32)
        for k in range(0, K, PART):
            sums = tl.dot(x.load([first_row, k]), weight.load([first_column, k]).T, sums)
        row = first_row + tl.arange(0, M)
        column = first_column + tl.arange(0, N)
        value = sums * tl.load(x_scales + row, mask=row < rows, other=0.0)[:, None]
        value = value * tl.load(weight_scales + column)[None, :] + tl.load(bias + column).to(tl.float32)[None, :]
        if GELU:
            value = value * tl.sigmoid(1.5957691216 * (value + 0.044715 * value * value * value))
        else:
            value = tl.maximum(value, 0.0)
        value = value / tl.load(out_scales + row, mask=row < rows, other=1.0)[:, None]
        out.store([first_row, first_column], value.to(tl.float8e4nv))
