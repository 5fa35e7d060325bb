"""The packed forward pass with products in fp8 (e4m3): half the bytes and, on a GPU that has them, twice the rate.

The input of a product has a scale for each row, its weight one for each output. A scale is the largest number over 448,
so that nothing is cut off. Inputs are rounded where they are made. Attention, residuals and normalisations are computed
as in bf16, and so are the products that the spec does not name: some need more digits than fp8 has, and rounding the
input of a small one takes as long as it saves.

Shapes as in packed.py; I inputs and J outputs of a product.
"""

from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from dpr.encoder.packed import ACTS, Copier, Linear, Norm, Ops, Packed

FP8 = torch.float8_e4m3fn
LARGEST = 448.0
"""The largest number of fp8 (e4m3)."""
SMALLEST_ROW = 1e-12
"""A row whose numbers are all smaller than this is taken for zeros."""


@dataclass(frozen=True)
class Coded:
    """Activations in fp8: codes times the scale of their row."""

    codes_TI: Tensor
    scales_T: Tensor
    """float32, (T, 1)"""


@dataclass(frozen=True)
class CodedLinear:
    """A linear layer whose weight is in fp8: (x @ codes.T) * scales + bias."""

    codes_JI: Tensor
    scales_J: Tensor
    """float32, (1, J)"""
    bias_J: Tensor


Product = Linear | CodedLinear


@dataclass(frozen=True)
class Fp8Layer:
    """One transformer layer's weights."""

    qkv: Product
    out: Product
    out_norm: Norm
    up: Product
    down: Product
    down_norm: Norm


class Fp8Ops(Protocol):
    """The operations of the fp8 pass that those of bf16, `base`, lack."""

    base: Ops

    def prepared(self, linear: CodedLinear) -> CodedLinear:
        """Return the layer with its weight in the layout that the products below need."""

    def code(self, x_TI: Tensor) -> Coded:
        """Return activations in fp8."""

    def project(self, x: Coded, linear: CodedLinear) -> Tensor:
        """Return x @ weight.T + bias in bf16."""

    def activate(self, x: Coded, linear: CodedLinear, act: str) -> Coded:
        """Return the activation `act` of x @ weight.T + bias in fp8; GELU is the approximation with tanh."""

    def merge(
        self, x_TH: Tensor, y: Tensor | Coded, product: Product, norm: Norm, dtype: torch.dtype
    ) -> tuple[Tensor, Coded]:
        """Return the layer normalisation of x + y @ weight.T + bias, in `dtype` and in fp8; may write over x.

        `y` is Coded if the product is a CodedLinear.
        """


def multiplies_fp8(device: torch.device) -> bool:
    """Return whether the processor has fp8 products with a scale for each row: NVIDIA's Hopper and later."""
    return device.type == "cuda" and torch.cuda.get_device_capability(device) >= (9, 0)


def code_rows(x_TI: Tensor) -> Coded:
    """Return activations, or a weight, in fp8, in plain PyTorch."""
    x_TI = x_TI.float()
    scales_T = x_TI.abs().amax(1, keepdim=True).clamp_min(SMALLEST_ROW) / LARGEST
    return Coded((x_TI / scales_T).to(FP8), scales_T)


class EmulatedFp8:
    """See Fp8Ops: numbers are rounded to fp8 and multiplied in bf16, which holds each of them exactly.

    Results are those of a GPU, except for the rounding of sums; it is slower than bf16.
    """

    def __init__(self, base: Ops) -> None:
        self.base = base

    def prepared(self, linear: CodedLinear) -> CodedLinear:
        """See Fp8Ops."""
        weight = self.base.prepared(Linear(linear.codes_JI.to(torch.bfloat16), linear.bias_J)).weight
        return CodedLinear(weight, linear.scales_J, linear.bias_J)

    def code(self, x_TI: Tensor) -> Coded:
        """See Fp8Ops."""
        return code_rows(x_TI)

    def project(self, x: Coded, linear: CodedLinear) -> Tensor:
        """See Fp8Ops."""
        return self._product(x, linear).to(torch.bfloat16)

    def activate(self, x: Coded, linear: CodedLinear, act: str) -> Coded:
        """See Fp8Ops."""
        return code_rows(activated(self.project(x, linear).float(), act))

    def merge(
        self, x_TH: Tensor, y: Tensor | Coded, product: Product, norm: Norm, dtype: torch.dtype
    ) -> tuple[Tensor, Coded]:
        """See Fp8Ops."""
        if isinstance(y, Coded):
            y_TH = self._product(y, coded_linear(product)).to(torch.bfloat16)
        else:
            y_TH = self.base.project(y, plain_linear(product))
        summed_TH = x_TH.float() + y_TH
        normed_TH = nn.functional.layer_norm(summed_TH, norm.weight_H.shape, norm.weight_H, norm.bias_H, norm.eps)
        return normed_TH.to(dtype), code_rows(normed_TH)

    def _product(self, x: Coded, linear: CodedLinear) -> Tensor:
        no_bias_J = torch.zeros_like(linear.bias_J)
        sums_TJ = self.base.project(x.codes_TI.to(torch.bfloat16), Linear(linear.codes_JI, no_bias_J))
        return sums_TJ.float() * x.scales_T * linear.scales_J + linear.bias_J


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


class Fp8Bert:
    """The forward pass of packed.PackedBert with some products in fp8."""

    def __init__(self, body: Any, ops: Fp8Ops, products: tuple[str, ...], device: torch.device) -> None:
        """`products`: those in fp8, such as `up` for those of all layers, or `3.up` for that of one."""
        config = body.config
        self._ops, self._heads, self._act = ops, int(config.num_attention_heads), str(config.hidden_act)
        copy = Copier(ops.base, torch.bfloat16, device)
        self._tables = copy.tables(body)
        self._layers = [_Layers(ops, copy, products).layer(*pair) for pair in enumerate(body.encoder.layer)]

    def hidden(self, packed: Packed) -> Tensor:
        """Return the token vectors (T, H) of the last layer, float32."""
        x_TH, qkv_TJ = self._before_last(packed)
        attended_TH = self._ops.base.attend(qkv_TJ, packed, self._heads, packed.longest)
        return self._finished(self._layers[-1], x_TH, attended_TH, torch.float32)[0]

    def first(self, packed: Packed) -> Tensor:
        """Return the vectors (B, H) of the first tokens, float32; see PackedBert.first."""
        (x_TH, qkv_TJ), rows_B = self._before_last(packed), packed.offsets[:-1]
        attended_TH = self._ops.base.attend(qkv_TJ, packed, self._heads, 1)
        return self._finished(self._layers[-1], x_TH[rows_B], attended_TH[rows_B], torch.float32)[0]

    def _before_last(self, packed: Packed) -> tuple[Tensor, Tensor]:
        """Return the last layer's input, and its queries, keys and values."""
        x_TH = self._ops.base.embed(self._tables, packed, torch.bfloat16)
        qkv_TJ = self._project(x_TH, None, self._layers[0].qkv)
        for layer, following in pairwise(self._layers):
            attended_TH = self._ops.base.attend(qkv_TJ, packed, self._heads, packed.longest)
            x_TH, coded = self._finished(layer, x_TH, attended_TH, torch.bfloat16)
            qkv_TJ = self._project(x_TH, coded, following.qkv)
        return x_TH, qkv_TJ

    def _finished(self, layer: Fp8Layer, x_TH: Tensor, attended_TH: Tensor, dtype: torch.dtype) -> tuple[Tensor, Coded]:
        """Return a layer's output, in `dtype` and in fp8."""
        y: Tensor | Coded = self._ops.code(attended_TH) if isinstance(layer.out, CodedLinear) else attended_TH
        x_TH, coded = self._ops.merge(x_TH, y, layer.out, layer.out_norm, torch.bfloat16)
        y = self._activate(x_TH, coded, layer)
        return self._ops.merge(x_TH, y, layer.down, layer.down_norm, dtype)

    def _activate(self, x_TH: Tensor, coded: Coded, layer: Fp8Layer) -> Tensor | Coded:
        """Return the input of the product `down`, in the form that it takes."""
        is_coded = isinstance(layer.down, CodedLinear)
        if isinstance(layer.up, CodedLinear):
            if is_coded:
                return self._ops.activate(coded, layer.up, self._act)
            return activated(self._ops.project(coded, layer.up), self._act)
        up_TF = self._ops.base.activate(x_TH, layer.up, self._act)
        return self._ops.code(up_TF) if is_coded else up_TF

    def _project(self, x_TI: Tensor, coded: Coded | None, product: Product) -> Tensor:
        """Return x @ weight.T + bias; `coded` is x in fp8, where it was made already."""
        if isinstance(product, Linear):
            return self._ops.base.project(x_TI, product)
        return self._ops.project(coded or self._ops.code(x_TI), product)


class _Layers:
    """Copies the weights of layers: those of some products in fp8, the others as the bf16 pass has them."""

    def __init__(self, ops: Fp8Ops, copy: Copier, products: tuple[str, ...]) -> None:
        self._ops, self._copy, self._products = ops, copy, products

    def layer(self, number: int, layer: Any) -> Fp8Layer:
        attention, projected = layer.attention.self, layer.attention.output
        return Fp8Layer(
            self._product(number, "qkv", attention.query, attention.key, attention.value),
            self._product(number, "out", projected.dense),
            self._copy.norm(projected.LayerNorm),
            self._product(number, "up", layer.intermediate.dense),
            self._product(number, "down", layer.output.dense),
            self._copy.norm(layer.output.LayerNorm),
        )

    def _product(self, number: int, name: str, *modules: nn.Linear) -> Product:
        if name not in self._products and f"{number}.{name}" not in self._products:
            return self._copy.linear(*modules)
        exact = self._copy.exact_linear(*modules)
        coded = code_rows(exact.weight)
        return self._ops.prepared(
            CodedLinear(coded.codes_TI, coded.scales_T.t().contiguous(), exact.bias.to(torch.bfloat16))
        )
