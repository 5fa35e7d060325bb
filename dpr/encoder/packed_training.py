"""The forward pass of BERT and its like with gradients, over sequences packed one after another, without padding.

It runs the network's own modules, so their weights are trained in place. Only attention is computed in another way: by
PyTorch's kernel for sequences of various lengths on a GPU in bf16, elsewhere in groups of sequences of nearly equal
length. Dropout is that of the modules; weights of attention are not dropped, which that kernel cannot do.

Shapes as in packed.py; G sequences of a group, L tokens of its longest one.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn.attention.varlen import varlen_attn

from dpr.encoder.packed import Packed
from dpr.encoder.packed_bert import first_position, has_bias, supports

MAX_PADDING = 1.15
"""Places of a group for each of its tokens."""
Attend = Callable[[Tensor, int], Tensor]
"""Queries, keys and values (T, J), and the number of heads, to attended values (T, H)."""


def trains(body: Any) -> bool:
    """Return whether PackedTraining runs `body`: PyTorch's kernel adds no biases to scores, as MPNet needs."""
    return supports(body) and not has_bias(body)


class PackedTraining:
    """Runs a network that `trains` names."""

    def __init__(self, body: Any) -> None:
        self._body, self._heads = body, int(body.config.num_attention_heads)
        self._first = first_position(body)

    def hidden(self, packed: Packed, lengths_B: npt.NDArray[np.int64], dtype: torch.dtype) -> Tensor:
        """Return the token vectors (T, H) of the last layer. `dtype` is that of products, which autocast has set."""
        attend = attention(packed, lengths_B, dtype)
        embeddings = self._body.embeddings
        x_TH: Tensor = embeddings.word_embeddings(packed.ids_T) + embeddings.token_type_embeddings(packed.types_T)
        x_TH = x_TH + embeddings.position_embeddings(packed.places_T + self._first)
        x_TH = embeddings.dropout(embeddings.LayerNorm(x_TH))
        for layer in self._body.encoder.layer:
            own = layer.attention.self
            x_TH = layer.attention.output(attend(_together(x_TH, own.query, own.key, own.value), self._heads), x_TH)
            x_TH = layer.output(layer.intermediate(x_TH), x_TH)
        return x_TH


def _together(x_TH: Tensor, *linears: nn.Linear) -> Tensor:
    """Return the outputs of several layers for the same input, concatenated, by one product."""
    weight = torch.cat([linear.weight for linear in linears])
    return nn.functional.linear(x_TH, weight, torch.cat([linear.bias for linear in linears]))


def attention(packed: Packed, lengths_B: npt.NDArray[np.int64], dtype: torch.dtype) -> Attend:
    """Return the attention function for the sequences of a batch."""
    if packed.ids_T.device.type == "cuda" and dtype == torch.bfloat16:
        return lambda qkv_TJ, heads: _by_kernel(qkv_TJ, heads, packed)
    groups = [_Group.of(first, some, packed.ids_T.device) for first, some in groups_of(lengths_B)]
    return lambda qkv_TJ, heads: torch.cat([group.attend(qkv_TJ, heads) for group in groups])


def _by_kernel(qkv_TJ: Tensor, heads: int, packed: Packed) -> Tensor:
    q, k, v = qkv_TJ.view(len(qkv_TJ), 3, heads, -1).unbind(1)
    attended: Any = varlen_attn(q, k, v, packed.offsets, packed.offsets, packed.longest, packed.longest)
    attended_TH: Tensor = attended.flatten(1)
    return attended_TH


def groups_of(lengths_B: npt.NDArray[np.int64]) -> list[tuple[int, npt.NDArray[np.int64]]]:
    """Cut a batch into runs of sequences of nearly equal length; return the first token and the lengths of each."""
    groups, first, start = [], 0, 0
    longest = real = 0
    for place, length in enumerate(lengths_B.tolist()):
        longest, real = max(longest, length), real + length
        if longest * (place - start + 1) > MAX_PADDING * real:
            groups.append((first, lengths_B[start:place]))
            first, start, longest, real = first + real - length, place, length, length
    groups.append((first, lengths_B[start:]))
    return groups


@dataclass(frozen=True)
class _Group:
    """Consecutive sequences that attention pads to the longest of them."""

    start: int
    stop: int
    """Its tokens are those from `start` to `stop`."""
    count: int
    places_GL: Tensor | None
    """The token at each place, counted from `start`; None if all are equally long."""
    real_GL: Tensor | None

    @classmethod
    def of(cls, first: int, lengths_G: npt.NDArray[np.int64], device: torch.device) -> "_Group":
        total, longest = int(lengths_G.sum()), int(lengths_G.max(initial=0))
        if total == longest * len(lengths_G):
            return cls(first, first + total, len(lengths_G), None, None)
        real_GL = np.arange(longest)[None, :] < lengths_G[:, None]
        places_GL = np.zeros(real_GL.shape, np.int64)
        places_GL[real_GL] = np.arange(total)
        moved = [torch.from_numpy(array).to(device) for array in (places_GL, real_GL)]
        return cls(first, first + total, len(lengths_G), *moved)

    def attend(self, qkv_TJ: Tensor, heads: int) -> Tensor:
        own_TJ = qkv_TJ[self.start : self.stop]
        padded = own_TJ.view(self.count, -1, own_TJ.shape[1]) if self.places_GL is None else own_TJ[self.places_GL]
        q, k, v = (x.reshape(*x.shape[:2], heads, -1).transpose(1, 2) for x in padded.chunk(3, dim=-1))
        mask = None if self.real_GL is None else self.real_GL[:, None, None, :]
        attended = nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        attended_GLH = attended.transpose(1, 2).flatten(2)
        return attended_GLH.flatten(0, 1) if self.real_GL is None else attended_GLH[self.real_GL]
