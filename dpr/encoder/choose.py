"""Which way a tower is run on a device: packed where it can be, padded elsewhere; on a GPU within its memory."""

from dataclasses import dataclass

import torch

from dpr.encoder.memory import WithinMemory
from dpr.encoder.model import Forward, Network
from dpr.encoder.packed import supports
from dpr.encoder.packed_forward import PackedForward
from dpr.encoder.padded import PaddedForward
from dpr.encoder.spec import TowerSpec
from dpr.encoder.tokens import SHORTEST

GPU_THREADS = 3
"""Callers that keep a GPU busy: one batch computes while one waits its turn and one is made ready or read back."""


@dataclass(frozen=True)
class Way:
    """A way to run a tower, and in words which and why."""

    forward: Forward
    said: str


def choose_way(
    network: Network, tower: TowerSpec, dtype: torch.dtype, device: torch.device, *, packing: bool = True
) -> Way:
    """The fastest way for this network, which is float32 and on `device`, and may be converted in place."""
    if not packing:
        why = "as asked for"
    elif dtype != torch.bfloat16:
        why = "packing is for bf16"
    elif not supports(network.body):
        why = f"packing does not know networks of type {network.body.config.model_type}"
    else:
        try:
            packed = PackedForward(network, tower, device, dtype)
            packed(SHORTEST)
        except (ImportError, RuntimeError) as error:  # no Triton, or no C compiler for it; PyTorch without oneDNN
            why = f"packing does not run here: {' '.join(str(error).split())[:200]}"
        else:
            return Way(_within(packed, device), "packed without padding")
    padded = PaddedForward(network.to(dtype, device), tower, device)
    return Way(_within(padded, device), f"padded to nearly equal lengths ({why})")


def _within(forward: Forward, device: torch.device) -> Forward:
    """The same, on a GPU within its memory."""
    return WithinMemory(forward) if device.type == "cuda" else forward
