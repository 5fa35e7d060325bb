"""How an encoder computes. Apart from the encoder, so that a driver can say it without importing PyTorch."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Compute:
    """How to compute; nothing of it changes what is computed beyond rounding."""

    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """`auto`: bf16 where the processor multiplies it and the vectors keep a cosine of 0.999 with fp32."""
    tokens_per_batch: int | None = None
    """Tokens of one batch, padding included; None: a default for the device."""
    threads: int | None = None
    """CPU threads; None: what PyTorch takes, which follows OMP_NUM_THREADS."""
    device: str | None = None
    """`cpu`, `cuda`, …; None: a GPU where there is one."""
    packing: Literal["auto", "never"] = "auto"
    """`auto`: without padding where this device and network allow it; `never`: padded to nearly equal lengths."""
