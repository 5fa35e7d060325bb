"""The packed operations as Triton kernels, for GPUs. Shapes as in packed.py; D dimensions of a head.

Attention is one pass over the keys with the running maximum of FlashAttention-2. Each program computes one small block
of queries of one head of one sequence. So little of a passage's blocks (a few hundred tokens) is padding, and several
programs share a multiprocessor, which computes one while another waits for memory.
"""

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from dpr.encoder.packed import Norm, Packed, Products, Tables

QUERIES = 64
"""Rows of a block of queries."""
SHORT, SHORT_KEYS, LONG_KEYS = 160, {"KEYS": 32, "num_stages": 3}, {"KEYS": 64, "num_stages": 2}
"""Up to SHORT tokens small blocks of keys waste less; for longer ones large blocks are faster (measured on an H200)."""
ROWS = 4
"""Rows that one program normalises."""


class TritonOps(Products):
    """See packed.Ops."""

    def embed(self, tables: Tables, packed: Packed, dtype: torch.dtype) -> Tensor:
        """See Ops."""
        rows, size = len(packed.ids_T), tables.words.shape[1]
        out_TH = torch.empty((rows, size), dtype=dtype, device=packed.ids_T.device)
        norm = tables.norm
        _embed[(triton.cdiv(rows, ROWS),)](
            packed.ids_T, packed.types_T, packed.places_T, tables.words, tables.types, tables.positions,
            norm.weight_H, norm.bias_H, norm.eps, out_TH, rows, size, triton.next_power_of_2(size), ROWS,
        )  # fmt: skip
        return out_TH

    def attend(self, qkv_TJ: Tensor, packed: Packed, heads: int, queries: int, bias: Tensor | None = None) -> Tensor:
        """See Ops."""
        rows, size = qkv_TJ.shape[0], qkv_TJ.shape[1] // 3
        out_TH = torch.empty((rows, size), dtype=qkv_TJ.dtype, device=qkv_TJ.device)
        attend_into(out_TH, qkv_TJ, packed, heads, queries, bias)
        return out_TH

    def add_norm(self, x_TH: Tensor, bias_H: Tensor, norm: Norm, dtype: torch.dtype) -> Tensor:
        """See Products."""
        rows, size = x_TH.shape
        out_TH = torch.empty_like(x_TH, dtype=dtype)
        _add_norm[(triton.cdiv(rows, ROWS),)](
            x_TH, bias_H, norm.weight_H, norm.bias_H, norm.eps, out_TH, rows, size, triton.next_power_of_2(size), ROWS
        )
        return out_TH


def attend_into(
    out_TH: Tensor,
    qkv_TJ: Tensor,
    packed: Packed,
    heads: int,
    queries: int,
    bias_NR: Tensor | None,
    factor: float = 1.0,
) -> None:
    """Write attention as in Ops, times `factor`, into `out`, whose type may be another."""
    size, blocks = out_TH.shape[1], triton.cdiv(queries, QUERIES)
    head_size = size // heads
    scale = math.log2(math.e) / math.sqrt(head_size)
    keys = SHORT_KEYS if packed.longest <= SHORT else LONG_KEYS
    _attend[(heads * blocks * (len(packed.offsets) - 1),)](
        qkv_TJ, out_TH, packed.offsets, bias_NR, 0 if bias_NR is None else bias_NR.shape[1], scale, factor, blocks,
        heads, size, head_size, QUERIES, **keys,
    )  # fmt: skip


@triton.jit(do_not_specialize=["blocks"])
def _attend(qkv, out, offsets, bias, R: tl.constexpr, scale, factor, blocks, heads: tl.constexpr, H: tl.constexpr,
            D: tl.constexpr, QUERIES: tl.constexpr, KEYS: tl.constexpr):  # fmt: skip
    # heads vary fastest, then the blocks of one sequence, so that programs that run together read the same keys
    program = tl.program_id(0)
    head = program % heads
    block = (program // heads) % blocks
    sequence = program // (heads * blocks)
    start = tl.load(offsets + sequence)
    length = tl.load(offsets + sequence + 1) - start
    if block * QUERIES >= length:
        return
    d = tl.arange(0, D)
    row = block * QUERIES + tl.arange(0, QUERIES)
    base = qkv + start.to(tl.int64) * (3 * H) + head * D
    q = tl.load(base + row[:, None] * (3 * H) + d[None, :], mask=row[:, None] < length, other=0.0)
    sums = tl.zeros((QUERIES, D), tl.float32)
    total = tl.zeros((QUERIES,), tl.float32)
    top = tl.full((QUERIES,), -float("inf"), tl.float32)
    for first in range(0, length, KEYS):
        key = first + tl.arange(0, KEYS)
        k = tl.load(base + H + key[None, :] * (3 * H) + d[:, None], mask=key[None, :] < length, other=0.0)
        v = tl.load(base + 2 * H + key[:, None] * (3 * H) + d[None, :], mask=key[:, None] < length, other=0.0)
        scores = tl.dot(q, k)
        if bias is not None:  # decided when the kernel is compiled; scores are divided by the root of D later
            near = (row[:, None] < length) & (key[None, :] < length)
            distance = key[None, :] - row[:, None]
            scores += tl.load(bias + head * R + R // 2 + distance, mask=near, other=0.0) * D**0.5
        scores = tl.where(key[None, :] < length, scores, -float("inf"))
        higher = tl.maximum(top, tl.max(scores, 1))
        weights = tl.exp2(scores * scale - (higher * scale)[:, None])
        fade = tl.exp2((top - higher) * scale)
        total = total * fade + tl.sum(weights, 1)
        sums = tl.dot(weights.to(v.dtype), v, sums * fade[:, None])
        top = higher
    at = out + (start + row).to(tl.int64)[:, None] * H + head * D + d[None, :]
    tl.store(at, (sums * (factor / total)[:, None]).to(out.dtype.element_ty), mask=row[:, None] < length)


@triton.jit
def standardised(x, eps, column, H: tl.constexpr):
    """Return rows with mean 0 and variance 1."""
    x = tl.where(column[None, :] < H, x - (tl.sum(x, 1) / H)[:, None], 0.0)
    return x * tl.rsqrt(tl.sum(x * x, 1) / H + eps)[:, None]


@triton.jit
def _normalised(x, weight, bias, eps, column, H: tl.constexpr):
    x = standardised(x, eps, column, H)
    weight_H = tl.load(weight + column, mask=column < H, other=0.0)
    bias_H = tl.load(bias + column, mask=column < H, other=0.0)
    return x * weight_H[None, :] + bias_H[None, :]


@triton.jit(do_not_specialize=["rows"])
def _add_norm(x, add, weight, bias, eps, out, rows, H: tl.constexpr, WIDTH: tl.constexpr, ROWS: tl.constexpr):
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    column = tl.arange(0, WIDTH)
    mask = (row[:, None] < rows) & (column[None, :] < H)
    at = row.to(tl.int64)[:, None] * H + column[None, :]
    total = tl.load(x + at, mask=mask, other=0.0).to(tl.float32)
    total += tl.load(add + column, mask=column < H, other=0.0).to(tl.float32)[None, :]
    tl.store(out + at, _normalised(total, weight, bias, eps, column, H).to(out.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=["rows"])
def _embed(ids, types, places, words, type_table, positions, weight, bias, eps, out, rows, H: tl.constexpr,
           WIDTH: tl.constexpr, ROWS: tl.constexpr):  # fmt: skip
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    column = tl.arange(0, WIDTH)
    inside = row < rows
    mask = inside[:, None] & (column[None, :] < H)
    word = tl.load(ids + row, mask=inside, other=0).to(tl.int64)
    kind = tl.load(types + row, mask=inside, other=0)
    place = tl.load(places + row, mask=inside, other=0)
    total = tl.load(words + word[:, None] * H + column[None, :], mask=mask, other=0.0)
    total += tl.load(type_table + kind[:, None] * H + column[None, :], mask=mask, other=0.0)
    total += tl.load(positions + place[:, None] * H + column[None, :], mask=mask, other=0.0)
    at = row.to(tl.int64)[:, None] * H + column[None, :]
    tl.store(out + at, _normalised(total, weight, bias, eps, column, H).to(out.dtype.element_ty), mask=mask)
