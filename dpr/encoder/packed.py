"""What the forward passes over sequences that are packed one after another, without padding, have in common.

Shapes: B sequences, T tokens of all of them, H hidden size, J = 3 H (queries, keys and values side by side), F
feed-forward size, N heads, R distances between two tokens. Sequence b holds tokens offsets[b] to offsets[b + 1].
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

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

    def prepared_bias(self, bias_NR: Tensor) -> Tensor:
        """Return attention's biases in the layout that `attend` needs.

        Given is one for each head and distance: key minus query, from -(R // 2) to R // 2.
        """

    def project(self, x_TH: Tensor, linear: Linear) -> Tensor:
        """Return x @ weight.T + bias."""

    def activate(self, x_TH: Tensor, linear: Linear, act: str) -> Tensor:
        """Return the activation `act` of x @ weight.T + bias."""

    def merge(self, x_TH: Tensor, y_TJ: Tensor, linear: Linear, norm: Norm, dtype: torch.dtype) -> Tensor:
        """Return the layer normalisation of x + y @ weight.T + bias, in `dtype`; may write over x."""

    def embed(self, tables: Tables, packed: Packed, dtype: torch.dtype) -> Tensor:
        """Return the normalised sums of the three embeddings (T, H)."""

    def attend(self, qkv_TJ: Tensor, packed: Packed, heads: int, queries: int, bias: Tensor | None = None) -> Tensor:
        """Return attention within each sequence (T, H); only the first `queries` rows of each sequence are needed.

        `bias`, from `prepared_bias`, is added to the scores.
        """


class Products(ABC):
    """The matrix products of Ops in PyTorch, fused with activations and residuals."""

    def computed_tokens(self, tokens: int) -> int:
        """See Ops."""
        return tokens

    def prepared(self, linear: Linear) -> Linear:
        """See Ops."""
        return linear

    def prepared_bias(self, bias_NR: Tensor) -> Tensor:
        """See Ops."""
        return bias_NR

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


PACKED_POOLINGS = ("cls", "max", "mean")


def pool_packed(hidden_TH: Tensor, packed: Packed, pooling: str) -> Tensor:
    """Return mean or maximum (B, H) over each sequence's tokens."""
    lengths = packed.offsets.diff().long()
    # unsafe: the lengths are not checked, because reading them would wait for the device, and more tokens may follow
    return torch.segment_reduce(hidden_TH, pooling, lengths=lengths, unsafe=True)
