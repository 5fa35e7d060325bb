"""How an encoder computes. It is a module of its own, so that a driver need not import PyTorch."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Compute:
    """How to compute; none of the settings changes vectors by more than rounding."""

    precision: Literal["auto", "fp32", "bf16", "fp8"] = "auto"
    """`auto`: bf16 where the processor multiplies bf16 and the vectors keep a cosine of 0.999 with fp32. `fp8`: that of
    the tower's spec, and `auto` for a tower without."""
    tokens_per_batch: int | None = None
    """Tokens of one batch, padding included; None: the default for the device."""
    threads: int | None = None
    """CPU threads; None: as many as PyTorch uses, which follows OMP_NUM_THREADS."""
    device: str | None = None
    """`cpu`, `cuda`, …; None: a GPU if there is one."""
    packing: Literal["auto", "never"] = "auto"
    """`auto`: without padding where this device and network allow it; `never`: padded to nearly equal lengths."""
