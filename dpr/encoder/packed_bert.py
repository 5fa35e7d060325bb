"""The packed forward pass of a BERT-like network, and the copies of weights that it needs. Shapes as in packed.py."""

from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from dpr.encoder.packed import ACTS, Layer, Linear, Norm, Ops, Packed, Tables

_FROM_ZERO = ("bert", "dpr")
_AFTER_PADDING = ("camembert", "mpnet", "roberta", "xlm-roberta")
"""Types of networks that count positions from 0, and of those that count them from the id of padding + 1."""
_HEAD_SIZES = (16, 32, 64, 128)
"""Sizes of attention heads that the kernels can compute."""
_TYPES = 256
"""Rows of a table of zeros for networks without token types: as many as a token's type can be."""


def supports(body: Any) -> bool:
    """Return whether `body` is a network that PackedBert computes."""
    config = body.config
    absolute = getattr(config, "position_embedding_type", None) in (None, "absolute")
    plain = not (getattr(config, "is_decoder", False) or getattr(config, "add_cross_attention", False))
    known = config.model_type in _FROM_ZERO + _AFTER_PADDING
    heads = known and config.hidden_size // config.num_attention_heads in _HEAD_SIZES
    return heads and config.hidden_act in ACTS and absolute and plain


def first_position(body: Any) -> int:
    """Return the row of the table of positions that the first token of a sequence has."""
    return int(body.embeddings.padding_idx) + 1 if body.config.model_type in _AFTER_PADDING else 0


def has_bias(body: Any) -> bool:
    """Return whether attention adds a bias for each distance between two tokens, as MPNet's does."""
    return hasattr(body.encoder, "relative_attention_bias")


@dataclass(frozen=True)
class LayerModules:
    """The modules of one transformer layer, whatever its network calls them."""

    query: nn.Linear
    key: nn.Linear
    value: nn.Linear
    out: nn.Linear
    out_norm: nn.LayerNorm
    up: nn.Linear
    down: nn.Linear
    down_norm: nn.LayerNorm

    @classmethod
    def of(cls, layer: Any) -> "LayerModules":
        attention = layer.attention
        if hasattr(attention, "attn"):  # MPNet
            own = attention.attn
            parts = (own.q, own.k, own.v, own.o, attention.LayerNorm)
        else:
            own, projected = attention.self, attention.output
            parts = (own.query, own.key, own.value, projected.dense, projected.LayerNorm)
        return cls(*parts, layer.intermediate.dense, layer.output.dense, layer.output.LayerNorm)


class PackedBert:
    """The forward pass of BERT, RoBERTa, MPNet and networks of the same architecture."""

    def __init__(self, body: Any, ops: Ops, dtype: torch.dtype, device: torch.device) -> None:
        config = body.config
        self._ops, self._dtype, self._heads = ops, dtype, int(config.num_attention_heads)
        self._act = str(config.hidden_act)
        copy = Copier(ops, dtype, device)
        self._tables, self._bias = copy.tables(body), copy.bias(body)
        self._layers = [copy.layer(layer) for layer in body.encoder.layer]

    def hidden(self, packed: Packed) -> Tensor:
        """Return the token vectors (T, H) of the last layer, float32."""
        x_TH, qkv_TJ = self._before_last(packed)
        return self._finished(self._layers[-1], x_TH, self._attended(qkv_TJ, packed, packed.longest), torch.float32)

    def first(self, packed: Packed) -> Tensor:
        """Return the vectors (B, H) of the first tokens, float32.

        After its attention the last layer is computed for these tokens only.
        """
        (x_TH, qkv_TJ), rows_B = self._before_last(packed), packed.offsets[:-1]
        attended_TH = self._attended(qkv_TJ, packed, 1)
        return self._finished(self._layers[-1], x_TH[rows_B], attended_TH[rows_B], torch.float32)

    def _before_last(self, packed: Packed) -> tuple[Tensor, Tensor]:
        """Return the last layer's input, and its queries, keys and values."""
        x_TH = self._ops.embed(self._tables, packed, self._dtype)
        qkv_TJ = self._ops.project(x_TH, self._layers[0].qkv)
        for layer, following in pairwise(self._layers):
            x_TH = self._finished(layer, x_TH, self._attended(qkv_TJ, packed, packed.longest), self._dtype)
            qkv_TJ = self._ops.project(x_TH, following.qkv)
        return x_TH, qkv_TJ

    def _attended(self, qkv_TJ: Tensor, packed: Packed, queries: int) -> Tensor:
        return self._ops.attend(qkv_TJ, packed, self._heads, queries, self._bias)

    def _finished(self, layer: Layer, x_TH: Tensor, attended_TH: Tensor, dtype: torch.dtype) -> Tensor:
        x_TH = self._ops.merge(x_TH, attended_TH, layer.out, layer.out_norm, self._dtype)
        up_TF = self._ops.activate(x_TH, layer.up, self._act)
        return self._ops.merge(x_TH, up_TF, layer.down, layer.down_norm, dtype)


class Copier:
    """Copies a network's weights: those of products in `dtype`, all others in float32."""

    def __init__(self, ops: Ops, dtype: torch.dtype, device: torch.device) -> None:
        self._ops, self._dtype, self._device = ops, dtype, device

    def exact(self, weight: Tensor) -> Tensor:
        return weight.detach().to(self._device, torch.float32).contiguous()

    def norm(self, module: nn.LayerNorm) -> Norm:
        return Norm(self.exact(module.weight), self.exact(module.bias), module.eps)

    def tables(self, body: Any) -> Tables:
        embeddings, words = body.embeddings, body.embeddings.word_embeddings.weight
        typed = hasattr(embeddings, "token_type_embeddings")
        return Tables(
            self.exact(words),
            self.exact(embeddings.token_type_embeddings.weight if typed else words.new_zeros(_TYPES, words.shape[1])),
            self.exact(embeddings.position_embeddings.weight[first_position(body) :]),
            self.norm(embeddings.LayerNorm),
        )

    def bias(self, body: Any) -> Tensor | None:
        """Return what attention adds to scores, if it does: the distances of all layers share one table."""
        if not has_bias(body):
            return None
        weight, last = body.encoder.relative_attention_bias.weight, len(body.embeddings.position_embeddings.weight) - 1
        distances_R = torch.arange(first_position(body) - last, last - first_position(body) + 1, device=weight.device)
        return self._ops.prepared_bias(self.exact(weight[body.encoder.relative_position_bucket(distances_R)].t()))

    def exact_linear(self, *modules: nn.Linear) -> Linear:
        """Copy the modules as one, side by side, in float32."""
        weight, bias = (torch.cat([getattr(module, name) for module in modules]) for name in ("weight", "bias"))
        return Linear(self.exact(weight), self.exact(bias))

    def linear(self, *modules: nn.Linear) -> Linear:
        """Copy the modules as one, side by side."""
        exact = self.exact_linear(*modules)
        return self._ops.prepared(Linear(exact.weight.to(self._dtype), exact.bias.to(self._dtype)))

    def layer(self, layer: Any) -> Layer:
        own = LayerModules.of(layer)
        return Layer(
            self.linear(own.query, own.key, own.value),
            self.linear(own.out),
            self.norm(own.out_norm),
            self.linear(own.up),
            self.linear(own.down),
            self.norm(own.down_norm),
        )
