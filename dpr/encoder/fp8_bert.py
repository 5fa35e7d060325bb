"""The packed forward pass of a BERT-like network with products in fp8.

Attention, residuals and normalisations are computed as in bf16, and so are the products that the spec does not name.

What is rounded is the normalised vector itself. The weight and bias of the normalisation become part of the next
product: where a model has components many times larger than all others, they lie in that weight, and not in the vector.
A normalised vector has the length √H at most, which bounds each of its numbers, and by Cauchy and Schwarz each number
of the product after it. So scales follow from the weights, and nothing is cut off.

Shapes as in packed.py; I inputs and J outputs of a product.
"""

import math
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from dpr.encoder.packed import Linear, Norm, Packed
from dpr.encoder.packed_bert import Copier, LayerModules
from dpr.encoder.packed_fp8 import FP8, Coded, CodedLinear, Fp8Ops, Product, activated, code_weight, scale_for


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


def bound_of(linear: Linear) -> float:
    """Return what no output of a linear layer exceeds, for a normalised input."""
    lengths_J = linear.weight.double().norm(dim=1)
    return float((lengths_J * math.sqrt(linear.weight.shape[1]) + linear.bias.double().abs()).max())


def bias_of(product: Product) -> Tensor:
    """Return the bias of a product of either kind."""
    return product.bias_J if isinstance(product, CodedLinear) else product.bias


class Fp8Bert:
    """The forward pass of packed_bert.PackedBert with some products in fp8."""

    def __init__(self, body: Any, ops: Fp8Ops, products: tuple[str, ...], device: torch.device) -> None:
        """`products`: those in fp8, such as `up` for those of all layers, or `3.up` for that of one."""
        config = body.config
        self._ops, self._heads, self._act = ops, int(config.num_attention_heads), str(config.hidden_act)
        copy = Copier(ops.base, torch.bfloat16, device)
        tables, self._bias = copy.tables(body), copy.bias(body)
        self._norm, self._no_bias_H = tables.norm, torch.zeros_like(tables.norm.bias_H)
        # the sums of the embeddings, normalised; weight and bias come with the rounding to fp8
        plain = Norm(torch.ones_like(tables.norm.weight_H), self._no_bias_H, tables.norm.eps)
        self._tables = replace(tables, norm=plain)
        layers, before = _Layers(ops, copy, products), body.embeddings.LayerNorm
        self._layers = list[Fp8Layer]()
        for number, layer in enumerate(body.encoder.layer):
            modules = LayerModules.of(layer)
            self._layers.append(layers.layer(number, modules, before))
            before = modules.down_norm

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
            return self._ops.attend(qkv_TJ, packed, self._heads, queries, self._bias, layer.attended_scale)
        return self._ops.base.attend(qkv_TJ, packed, self._heads, queries, self._bias)

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

    def layer(self, number: int, own: LayerModules, before: nn.LayerNorm) -> Fp8Layer:
        """Copy a layer; `before` is the normalisation whose result it gets."""
        return Fp8Layer(
            self._product(number, "qkv", before, own.query, own.key, own.value),
            self._product(number, "out", None, own.out),
            self._copy.norm(own.out_norm),
            self._product(number, "up", own.out_norm, own.up),
            self._product(number, "down", None, own.down),
            self._copy.norm(own.down_norm),
            # attention is a mean of values, and no activation is larger than its input
            scale_for(bound_of(self._folded(before, own.value))),
            scale_for(bound_of(self._folded(own.out_norm, own.up))),
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
