"""The choice of how to run a tower on a device: packed if possible, otherwise padded; on a GPU within its memory."""

from dataclasses import dataclass

import torch

from dpr.encoder.memory import WithinMemory
from dpr.encoder.network import Forward, Network
from dpr.encoder.packed import PACKED_POOLINGS
from dpr.encoder.packed_bert import supports
from dpr.encoder.packed_forward import PackedForward
from dpr.encoder.packed_fp8 import FP8
from dpr.encoder.padded import EqualLengthsForward, PaddedForward, padding_changes
from dpr.encoder.tokens import SHORTEST
from dpr.encoder.tower import TowerSpec
from dpr.errors import EncoderError

GPU_THREADS = 3
"""Threads that keep a GPU busy: it computes one batch, the next one waits, and a third is prepared or read back."""


@dataclass(frozen=True)
class ForwardChoice:
    """The chosen forward pass of a tower."""

    forward: Forward
    description: str
    """A description of the choice and its reason, for people."""


def choose_forward(
    network: Network, tower: TowerSpec, dtype: torch.dtype, device: torch.device, *, packing: bool = True
) -> ForwardChoice:
    """Choose the fastest way to run this network, which is float32 and on `device`; it may be converted in place."""
    if dtype == FP8:
        return ForwardChoice(
            _limited(_packed_fp8(network, tower, device, packing=packing), device), "packed without padding"
        )
    if not packing:
        reason = "as requested"
    elif dtype != torch.bfloat16:
        reason = "packing needs bf16"
    elif tower.pooling not in PACKED_POOLINGS or not tower.prompt_pooled:
        what = tower.pooling if tower.prompt_pooled else "the tokens after a prompt"
        reason = f"packing does not pool by {what}"
    elif not supports(network.body):
        reason = f"packing does not support networks of type {network.body.config.model_type}"
    else:
        try:
            packed = PackedForward(network, tower, device, dtype)
            packed(SHORTEST)
        except (ImportError, RuntimeError) as error:  # no Triton, or no C compiler for it; PyTorch without oneDNN
            reason = f"packing does not run here: {' '.join(str(error).split())[:200]}"
        else:
            return ForwardChoice(_limited(packed, device), "packed without padding")
    equal = padding_changes(network, device)
    padded = (EqualLengthsForward if equal else PaddedForward)(network.to(dtype, device), tower, device)
    how = "rows of equal length at a time, since padding changes vectors" if equal else "padded to nearly equal lengths"
    return ForwardChoice(_limited(padded, device), f"{how} ({reason})")


def _packed_fp8(network: Network, tower: TowerSpec, device: torch.device, *, packing: bool) -> Forward:
    """Return the pass with fp8. Raises EncoderError for a tower that it cannot compute: no other pass has fp8."""
    pools = tower.pooling in PACKED_POOLINGS and tower.prompt_pooled
    if not (packing and pools and supports(network.body)):
        raise EncoderError(
            f"encoder.precision is fp8, which needs a packed forward pass, and model {tower.reference} "
            f"({tower.architecture}, pooling {tower.pooling}, packing {'auto' if packing else 'never'}) has none; set "
            "encoder.precision to bf16"
        )
    packed = PackedForward(network, tower, device, FP8)
    packed(SHORTEST)
    return packed


def _limited(forward: Forward, device: torch.device) -> Forward:
    """Return `forward`; for a GPU, one that makes batches smaller when memory runs out."""
    return WithinMemory(forward) if device.type == "cuda" else forward
