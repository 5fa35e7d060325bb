"""The packed operations in plain PyTorch: slow; tests compare the faster ones with them. Shapes as in packed.py."""

import torch
from torch import Tensor, nn

from dpr.encoder.packed import Norm, Packed, Products, Tables


class TorchOps(Products):
    """See packed.Ops."""

    def embed(self, tables: Tables, packed: Packed, dtype: torch.dtype) -> Tensor:
        """See Ops."""
        return self._norm(self._summed(tables, packed), tables.norm).to(dtype)

    def prepared_bias(self, bias_NR: Tensor) -> Tensor:
        """See Ops: biases (N, P, P) of P queries with as many keys; the first L of both are those of L tokens."""
        return bias_NR.unfold(1, bias_NR.shape[1] // 2 + 1, 1).flip(1)

    def attend(
        self,
        qkv_TJ: Tensor,
        packed: Packed,
        heads: int,
        queries: int,  # noqa: ARG002
        bias: Tensor | None = None,
    ) -> Tensor:
        """See Ops."""
        attended = []
        for qkv_LJ in torch.split(qkv_TJ, packed.offsets.diff().tolist()):
            q, k, v = (x.reshape(len(x), heads, -1).transpose(0, 1)[None] for x in qkv_LJ.chunk(3, dim=1))
            mask = None if bias is None else bias[:, : len(qkv_LJ), : len(qkv_LJ)].to(q.dtype)
            of_heads = nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=mask)[0]
            attended.append(of_heads.transpose(0, 1).flatten(1))
        return torch.cat(attended)

    def add_norm(self, x_TH: Tensor, bias_H: Tensor, norm: Norm, dtype: torch.dtype) -> Tensor:
        """See Products."""
        return self._norm(x_TH.float() + bias_H, norm).to(dtype)

    @staticmethod
    def _summed(tables: Tables, packed: Packed) -> Tensor:
        x_TH = tables.words.index_select(0, packed.ids_T)
        x_TH += tables.types.index_select(0, packed.types_T)
        x_TH += tables.positions.index_select(0, packed.places_T)
        return x_TH

    @staticmethod
    def _norm(x_TH: Tensor, norm: Norm) -> Tensor:
        return nn.functional.layer_norm(x_TH, norm.weight_H.shape, norm.weight_H, norm.bias_H, norm.eps)
