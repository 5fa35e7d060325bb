"""The forward pass of a BERT-like network over sequences packed one after another, without padding.

Shapes: B sequences, T tokens of all of them, H hidden size, J = 3 H (queries, keys and values side by side), F
feed-forward size. Sequence b holds tokens offsets[b] to offsets[b + 1].
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Protocol

import torch
from torch import Tensor, nn

_FROM_ZERO = ("bert", "dpr")
_AFTER_PADDING = ("camembert", "roberta", "xlm-roberta")
"""Types of networks that count positions from 0, and of those that count them from pad_token_id + 1."""
_HEAD_SIZES = (16, 32, 64, 128)
"""Sizes of attention heads that the kernels can compute."""
ACTS = {"gelu": "gelu", "gelu_new": "gelu", "gelu_pytorch_tanh": "gelu", "relu": "relu"}
"""Activation that config.json names → activation that is computed."""


@dataclass(frozen=True)
class Packed:
    """Token ids of B sequences on the device, all int32.

    Further tokens may follow the last sequence. They belong to no sequence, and what is computed for them is not used.
    """

    ids_T: Tensor
    types_T: Tensor
    places_T: Tensor
    """Each token's place within its sequence, from 0."""
    offsets: Tensor
    """(B + 1,)"""
    longest: int
    """Tokens of the longest sequence."""


@dataclass(frozen=True)
class Norm:
    """A layer normalisation."""

    weight_H: Tensor
    bias_H: Tensor
    eps: float


@dataclass(frozen=True)
class Linear:
    """A linear layer: x @ weight.T + bias."""

    weight: Tensor
    bias: Tensor


@dataclass(frozen=True)
class Layer:
    """One transformer layer's weights."""

    qkv: Linear
    out: Linear
    out_norm: Norm
    up: Linear
    down: Linear
    down_norm: Norm


@dataclass(frozen=True)
class Tables:
    """The embedding tables: one row for each word, token type and position."""

    words: Tensor
    types: Tensor
    positions: Tensor
    norm: Norm


class Ops(Protocol):
    """The operations that differ between devices."""

    def computed_tokens(self, tokens: int) -> int:
        """Return the number of tokens, at least `tokens`, as which a batch of `tokens` tokens is computed."""

    def prepared(self, linear: Linear) -> Linear:
        """Return the layer with its weight in the layout that the products below need."""

    def project(self, x_TH: Tensor, linear: Linear) -> Tensor:
        """Return x @ weight.T + bias."""

    def activate(self, x_TH: Tensor, linear: Linear, act: str) -> Tensor:
        """Return the activation `act` of x @ weight.T + bias."""

    def merge(self, x_TH: Tensor, y_TJ: Tensor, linear: Linear, norm: Norm, dtype: torch.dtype) -> Tensor:
        """Return the layer normalisation of x + y @ weight.T + bias, in `dtype`; may write over x."""

    def embed(self, tables: Tables, packed: Packed, dtype: torch.dtype) -> Tensor:
        """Return the normalised sums of the three embeddings (T, H)."""

    def attend(self, qkv_TJ: Tensor, packed: Packed, heads: int, queries: int) -> Tensor:
        """Return attention within each sequence (T, H); only the first `queries` rows of each sequence are needed."""


class Products(ABC):
    """The matrix products of Ops in PyTorch, fused with activations and residuals."""

    def computed_tokens(self, tokens: int) -> int:
        """See Ops."""
        return tokens

    def prepared(self, linear: Linear) -> Linear:
        """See Ops."""
        return linear

    def project(self, x_TH: Tensor, linear: Linear) -> Tensor:
        """See Ops."""
        return torch.addmm(linear.bias, x_TH, linear.weight.t())

    def activate(self, x_TH: Tensor, linear: Linear, act: str) -> Tensor:
        """See Ops. On a GPU, GELU is the approximation with tanh."""
        return torch._addmm_activation(linear.bias, x_TH, linear.weight.t(), use_gelu=ACTS[act] == "gelu")

    def merge(self, x_TH: Tensor, y_TJ: Tensor, linear: Linear, norm: Norm, dtype: torch.dtype) -> Tensor:
        """See Ops. addmm_ adds the residual; the bias is added by the normalisation, which reads all values anyway."""
        x_TH.addmm_(y_TJ, linear.weight.t())
        return self.add_norm(x_TH, linear.bias, norm, dtype)

    @abstractmethod
    def add_norm(self, x_TH: Tensor, bias_H: Tensor, norm: Norm, dtype: torch.dtype) -> Tensor:
        """Return the layer normalisation of x + bias (T, H), in `dtype`."""

    @abstractmethod
    def embed(self, tables: Tables, packed: Packed, dtype: torch.dtype) -> Tensor:
        """See Ops."""


def supports(body: Any) -> bool:
    """Return whether `body` is a network that PackedBert computes."""
    config = body.config
    absolute = getattr(config, "position_embedding_type", None) in (None, "absolute")
    plain = not (getattr(config, "is_decoder", False) or getattr(config, "add_cross_attention", False))
    known = config.model_type in _FROM_ZERO + _AFTER_PADDING
    heads = known and config.hidden_size // config.num_attention_heads in _HEAD_SIZES
    return heads and config.hidden_act in ACTS and absolute and plain


def first_position(config: Any) -> int:
    """Return the row of the table of positions that the first token of a sequence has."""
    return int(config.pad_token_id) + 1 if config.model_type in _AFTER_PADDING else 0


class PackedBert:
    """The forward pass of BERT, RoBERTa and networks of the same architecture."""

    def __init__(self, body: Any, ops: Ops, dtype: torch.dtype, device: torch.device) -> None:
        config = body.config
        self._ops, self._dtype, self._heads = ops, dtype, int(config.num_attention_heads)
        self._act = str(config.hidden_act)
        copy = Copier(ops, dtype, device)
        self._tables = copy.tables(body)
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
        return self._ops.attend(qkv_TJ, packed, self._heads, queries)

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
        embeddings, first = body.embeddings, first_position(body.config)
        return Tables(
            self.exact(embeddings.word_embeddings.weight),
            self.exact(embeddings.token_type_embeddings.weight),
            self.exact(embeddings.position_embeddings.weight[first:]),
            self.norm(embeddings.LayerNorm),
        )

    def exact_linear(self, *modules: nn.Linear) -> Linear:
        """Copy the modules as one, side by side, in float32."""
        weight, bias = (torch.cat([getattr(module, name) for module in modules]) for name in ("weight", "bias"))
        return Linear(self.exact(weight), self.exact(bias))

    def linear(self, *modules: nn.Linear) -> Linear:
        """Copy the modules as one, side by side."""
        exact = self.exact_linear(*modules)
        return self._ops.prepared(Linear(exact.weight.to(self._dtype), exact.bias.to(self._dtype)))

    def layer(self, layer: Any) -> Layer:
        attention, projected = layer.attention.self, layer.attention.output
        return Layer(
            self.linear(attention.query, attention.key, attention.value),
            self.linear(projected.dense),
            self.norm(projected.LayerNorm),
            self.linear(layer.intermediate.dense),
            self.linear(layer.output.dense),
            self.norm(layer.output.LayerNorm),
        )


PACKED_POOLINGS = ("cls", "max", "mean")


def pool_packed(hidden_TH: Tensor, packed: Packed, pooling: str) -> Tensor:
    """Return mean or maximum (B, H) over each sequence's tokens."""
    lengths = packed.offsets.diff().long()
    # unsafe: the lengths are not checked, because reading them would wait for the device, and more tokens may follow
    return torch.segment_reduce(hidden_TH, pooling, lengths=lengths, unsafe=True)
