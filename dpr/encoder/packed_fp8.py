"""Products in fp8 (e4m3) for the packed forward pass: half the bytes and, on a GPU that has them, twice the rate.

Each matrix has one scale, a power of 2. Numbers of fp8 are floating-point numbers: their precision is the same over a
range of 1 to 28,672, so that a finer scale would gain nothing. Scales follow from the weights alone (`fp8_bert.py`). So
nothing is calibrated, and the same weights make the same scales everywhere.

Shapes as in packed.py; I inputs and J outputs of a product.
"""

import math
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from dpr.encoder.packed import ACTS, Linear, Norm, Ops, Packed

FP8 = torch.float8_e4m3fn
LARGEST = 448.0
"""The largest number of fp8 (e4m3)."""
MARGIN = 1.25
"""By this factor a number may exceed its bound, since products are computed from rounded numbers."""


@dataclass(frozen=True)
class Coded:
    """Activations in fp8: codes times a scale."""

    codes_TI: Tensor
    scale: float


@dataclass(frozen=True)
class CodedLinear:
    """A linear layer whose weight is in fp8: x @ codes.T * scale + bias."""

    codes_JI: Tensor
    scale: float
    bias_J: Tensor
    """bf16"""


Product = Linear | CodedLinear


class Fp8Ops(Protocol):
    """The operations of the fp8 pass that those of bf16, `base`, lack."""

    base: Ops

    def prepared(self, linear: CodedLinear) -> CodedLinear:
        """Return the layer with its weight in the layout that the products below need."""

    def code(self, x_TI: Tensor, scale: float) -> Coded:
        """Return activations in fp8."""

    def attend(
        self, qkv_TJ: Tensor, packed: Packed, heads: int, queries: int, bias: Tensor | None, scale: float
    ) -> Coded:
        """Return attention as Ops does, in fp8."""

    def project(self, x: Coded, linear: CodedLinear) -> Tensor:
        """Return x @ weight.T + bias in bf16."""

    def activate(self, x: Coded, linear: CodedLinear, act: str, scale: float) -> Coded:
        """Return the activation `act` of x @ weight.T + bias in fp8; GELU is the approximation with tanh."""

    def add(self, x_TH: Tensor, y: Tensor | Coded, product: Product) -> Tensor:
        """Return x + y @ weight.T; may write over x. `y` is Coded if the product is a CodedLinear."""

    def normalise(self, x_TH: Tensor, bias_H: Tensor, norm: Norm, dtype: torch.dtype) -> tuple[Tensor, Coded]:
        """Return the layer normalisation of x + bias in `dtype`, and in fp8 without the weight and bias of `norm`."""


def multiplies_fp8(device: torch.device) -> bool:
    """Return whether the processor has products of fp8 that are fast: NVIDIA's Hopper and later."""
    return device.type == "cuda" and torch.cuda.get_device_capability(device) >= (9, 0)


def scale_for(bound: float) -> float:
    """Return the scale, a power of 2, for numbers up to a bound."""
    return float(2.0 ** math.ceil(math.log2(bound * MARGIN / LARGEST))) if bound > 0 else 1.0


def normed_scale(size: int) -> float:
    """Return the scale of normalised vectors of so many components: none is larger than the vector's length."""
    return scale_for(math.sqrt(size))


def code(x_TI: Tensor, scale: float) -> Coded:
    """Return activations, or a weight, in fp8, in plain PyTorch."""
    return Coded((x_TI.float() / scale).to(FP8), scale)


def code_weight(weight_JI: Tensor) -> Coded:
    """Return a weight in fp8."""
    return code(weight_JI, scale_for(float(weight_JI.abs().max())))


class EmulatedFp8:
    """See Fp8Ops: numbers are rounded to fp8 and multiplied in bf16, which holds each of them exactly.

    Results are those of a GPU, except for the rounding of sums; it is slower than bf16.
    """

    def __init__(self, base: Ops) -> None:
        self.base = base

    def prepared(self, linear: CodedLinear) -> CodedLinear:
        """See Fp8Ops."""
        weight = self.base.prepared(Linear(linear.codes_JI.to(torch.bfloat16), linear.bias_J)).weight
        return CodedLinear(weight, linear.scale, linear.bias_J)

    def code(self, x_TI: Tensor, scale: float) -> Coded:
        """See Fp8Ops."""
        return code(x_TI, scale)

    def attend(
        self, qkv_TJ: Tensor, packed: Packed, heads: int, queries: int, bias: Tensor | None, scale: float
    ) -> Coded:
        """See Fp8Ops."""
        return code(self.base.attend(qkv_TJ, packed, heads, queries, bias), scale)

    def project(self, x: Coded, linear: CodedLinear) -> Tensor:
        """See Fp8Ops."""
        return (self._sums(x, linear) + linear.bias_J).to(torch.bfloat16)

    def activate(self, x: Coded, linear: CodedLinear, act: str, scale: float) -> Coded:
        """See Fp8Ops."""
        return code(activated(self._sums(x, linear) + linear.bias_J, act), scale)

    def add(self, x_TH: Tensor, y: Tensor | Coded, product: Product) -> Tensor:
        """See Fp8Ops."""
        if isinstance(y, Coded):
            return x_TH + self._sums(y, coded_linear(product))
        plain = plain_linear(product)
        return x_TH + self.base.project(y, Linear(plain.weight, torch.zeros_like(plain.bias)))

    def normalise(self, x_TH: Tensor, bias_H: Tensor, norm: Norm, dtype: torch.dtype) -> tuple[Tensor, Coded]:
        """See Fp8Ops."""
        normed_TH = nn.functional.layer_norm(x_TH.float() + bias_H, norm.weight_H.shape, eps=norm.eps)
        return (normed_TH * norm.weight_H + norm.bias_H).to(dtype), code(normed_TH, normed_scale(x_TH.shape[1]))

    def _sums(self, x: Coded, linear: CodedLinear) -> Tensor:
        """Return x @ weight.T, float32."""
        no_bias_J = torch.zeros_like(linear.bias_J)
        sums_TJ = self.base.project(x.codes_TI.to(torch.bfloat16), Linear(linear.codes_JI, no_bias_J))
        return sums_TJ.float() * (x.scale * linear.scale)


def activated(x_TF: Tensor, act: str) -> Tensor:
    """Return the activation of x."""
    return nn.functional.gelu(x_TF, approximate="tanh") if ACTS[act] == "gelu" else x_TF.relu()


def coded_linear(product: Product) -> CodedLinear:
    """Return a product that is in fp8. Raises TypeError if it is not."""
    if not isinstance(product, CodedLinear):
        raise TypeError("the product is in bf16, and its input in fp8")
    return product


def plain_linear(product: Product) -> Linear:
    """Return a product that is in bf16. Raises TypeError if it is not."""
    if not isinstance(product, Linear):
        raise TypeError("the product is in fp8, and its input in bf16")
    return product
