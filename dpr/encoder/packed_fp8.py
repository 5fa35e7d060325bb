"""The packed forward pass with products in fp8 (e4m3): half the bytes and, on a GPU that has them, twice the rate.

Each matrix has one scale, a power of 2. Numbers of fp8 are floating-point numbers: their precision is the same over a
range of 1 to 28,672, so that a finer scale would gain nothing. The scales follow from the weights alone. A vector that
was normalised has the length √H at most, which bounds each of its numbers, and by Cauchy and Schwarz each number of a
product. So nothing is cut off, nothing is calibrated, and the same weights make the same scales everywhere.

What is rounded is the normalised vector itself. The weight and bias of the normalisation become part of the next
product: where a model has components many times larger than all others, they lie in that weight, and not in the vector.
Attention, residuals and normalisations are computed as in bf16, and so are the products that the spec does not name.

Shapes as in packed.py; I inputs and J outputs of a product.
"""

import math
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from dpr.encoder.packed import ACTS, Copier, Linear, Norm, Ops, Packed

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


@dataclass(frozen=True)
class Fp8Layer:
    """One transformer layer's weights, and the scales of what is rounded within it."""

    qkv: Product
    out: Product
    out_norm: Norm
    up: Product
    down: Product
    down_norm: Norm
    attended_scale: float
    activated_scale: float


class Fp8Ops(Protocol):
    """The operations of the fp8 pass that those of bf16, `base`, lack."""

    base: Ops

    def prepared(self, linear: CodedLinear) -> CodedLinear:
        """Return the layer with its weight in the layout that the products below need."""

    def code(self, x_TI: Tensor, scale: float) -> Coded:
        """Return activations in fp8."""

    def attend(self, qkv_TJ: Tensor, packed: Packed, heads: int, queries: int, scale: float) -> Coded:
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


def bound_of(linear: Linear) -> float:
    """Return what no output of a linear layer exceeds, for a normalised input."""
    lengths_J = linear.weight.double().norm(dim=1)
    return float((lengths_J * math.sqrt(linear.weight.shape[1]) + linear.bias.double().abs()).max())


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

    def attend(self, qkv_TJ: Tensor, packed: Packed, heads: int, queries: int, scale: float) -> Coded:
        """See Fp8Ops."""
        return code(self.base.attend(qkv_TJ, packed, heads, queries), scale)

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


def bias_of(product: Product) -> Tensor:
    """Return the bias of a product of either kind."""
    return product.bias_J if isinstance(product, CodedLinear) else product.bias


class Fp8Bert:
    """The forward pass of packed.PackedBert with some products in fp8."""

    def __init__(self, body: Any, ops: Fp8Ops, products: tuple[str, ...], device: torch.device) -> None:
        """`products`: those in fp8, such as `up` for those of all layers, or `3.up` for that of one."""
        config = body.config
        self._ops, self._heads, self._act = ops, int(config.num_attention_heads), str(config.hidden_act)
        copy = Copier(ops.base, torch.bfloat16, device)
        tables = copy.tables(body)
        self._norm, self._no_bias_H = tables.norm, torch.zeros_like(tables.norm.bias_H)
        # the sums of the embeddings, normalised; weight and bias come with the rounding to fp8
        plain = Norm(torch.ones_like(tables.norm.weight_H), self._no_bias_H, tables.norm.eps)
        self._tables = replace(tables, norm=plain)
        layers, before = _Layers(ops, copy, products), body.embeddings.LayerNorm
        self._layers = list[Fp8Layer]()
        for number, layer in enumerate(body.encoder.layer):
            self._layers.append(layers.layer(number, layer, before))
            before = layer.output.LayerNorm

    def hidden(self, packed: Packed) -> Tensor:
        """Return the token vectors (T, H) of the last layer, float32."""
        x_TH, qkv_TJ = self._before_last(packed)
        last = self._layers[-1]
        attended = self._attended(last, qkv_TJ, packed, packed.longest)
        return self._finished(last, x_TH, attended, torch.float32)[0]

    def first(self, packed: Packed) -> Tensor:
        """Return the vectors (B, H) of the first tokens, float32; see PackedBert.first."""
        (x_TH, qkv_TJ), rows_B = self._before_last(packed), packed.offsets[:-1]
        last = self._layers[-1]
        attended = self._attended(last, qkv_TJ, packed, 1)
        if isinstance(attended, Coded):
            first: Tensor | Coded = replace(attended, codes_TI=attended.codes_TI.view(torch.uint8)[rows_B].view(FP8))
        else:
            first = attended[rows_B]
        return self._finished(last, x_TH[rows_B], first, torch.float32)[0]

    def _before_last(self, packed: Packed) -> tuple[Tensor, Tensor]:
        """Return the last layer's input, and its queries, keys and values."""
        embedded_TH = self._ops.base.embed(self._tables, packed, torch.bfloat16)
        x_TH, normed = self._ops.normalise(embedded_TH, self._no_bias_H, self._norm, torch.bfloat16)
        qkv_TJ = self._project(x_TH, normed, self._layers[0].qkv)
        for layer, following in pairwise(self._layers):
            attended = self._attended(layer, qkv_TJ, packed, packed.longest)
            x_TH, normed = self._finished(layer, x_TH, attended, torch.bfloat16)
            qkv_TJ = self._project(x_TH, normed, following.qkv)
        return x_TH, qkv_TJ

    def _attended(self, layer: Fp8Layer, qkv_TJ: Tensor, packed: Packed, queries: int) -> Tensor | Coded:
        """Return attention in the form that the product `out` takes."""
        if isinstance(layer.out, CodedLinear):
            return self._ops.attend(qkv_TJ, packed, self._heads, queries, layer.attended_scale)
        return self._ops.base.attend(qkv_TJ, packed, self._heads, queries)

    def _finished(
        self, layer: Fp8Layer, x_TH: Tensor, attended: Tensor | Coded, dtype: torch.dtype
    ) -> tuple[Tensor, Coded]:
        """Return a layer's output in `dtype`, and what of it is in fp8."""
        x_TH = self._ops.add(x_TH, attended, layer.out)
        x_TH, normed = self._ops.normalise(x_TH, bias_of(layer.out), layer.out_norm, torch.bfloat16)
        x_TH = self._ops.add(x_TH, self._activate(x_TH, normed, layer), layer.down)
        return self._ops.normalise(x_TH, bias_of(layer.down), layer.down_norm, dtype)

    def _activate(self, x_TH: Tensor, normed: Coded, layer: Fp8Layer) -> Tensor | Coded:
        """Return the input of the product `down`, in the form that it takes."""
        is_coded = isinstance(layer.down, CodedLinear)
        if isinstance(layer.up, CodedLinear):
            if is_coded:
                return self._ops.activate(normed, layer.up, self._act, layer.activated_scale)
            return activated(self._ops.project(normed, layer.up), self._act)
        up_TF = self._ops.base.activate(x_TH, layer.up, self._act)
        return self._ops.code(up_TF, layer.activated_scale) if is_coded else up_TF

    def _project(self, x_TH: Tensor, normed: Coded, product: Product) -> Tensor:
        """Return x @ weight.T + bias; `normed` is what of x is in fp8."""
        if isinstance(product, Linear):
            return self._ops.base.project(x_TH, product)
        return self._ops.project(normed, product)


class _Layers:
    """Copies the weights of layers: those of some products in fp8, the others as the bf16 pass has them."""

    def __init__(self, ops: Fp8Ops, copy: Copier, products: tuple[str, ...]) -> None:
        self._ops, self._copy, self._products = ops, copy, products

    def layer(self, number: int, layer: Any, before: nn.LayerNorm) -> Fp8Layer:
        """Copy a layer; `before` is the normalisation whose result it gets."""
        attention, projected = layer.attention.self, layer.attention.output
        qkv, up = (attention.query, attention.key, attention.value), layer.intermediate.dense
        return Fp8Layer(
            self._product(number, "qkv", before, *qkv),
            self._product(number, "out", None, projected.dense),
            self._copy.norm(projected.LayerNorm),
            self._product(number, "up", projected.LayerNorm, up),
            self._product(number, "down", None, layer.output.dense),
            self._copy.norm(layer.output.LayerNorm),
            # attention is a mean of values, and no activation is larger than its input
            scale_for(bound_of(self._folded(before, attention.value))),
            scale_for(bound_of(self._folded(projected.LayerNorm, up))),
        )

    def _product(self, number: int, name: str, norm: nn.LayerNorm | None, *modules: nn.Linear) -> Product:
        """Copy a product; `norm` is the normalisation that makes its input, if one does."""
        if name not in self._products and f"{number}.{name}" not in self._products:
            return self._copy.linear(*modules)
        exact = self._copy.exact_linear(*modules) if norm is None else self._folded(norm, *modules)
        coded = code_weight(exact.weight)
        return self._ops.prepared(CodedLinear(coded.codes_TI, coded.scale, exact.bias.to(torch.bfloat16)))

    def _folded(self, norm: nn.LayerNorm, *modules: nn.Linear) -> Linear:
        """Return the modules as one layer, of which the weight and bias of the normalisation before are a part."""
        exact, before = self._copy.exact_linear(*modules), self._copy.norm(norm)
        bias_J = exact.bias + exact.weight @ before.bias_H
        return Linear(exact.weight * before.weight_H, bias_J)
