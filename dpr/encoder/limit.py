"""The limit that a device's own matrix products set to encoding: what a forward pass costs over what the device does.

Shapes: N rows.
"""

import time
from collections.abc import Callable
from concurrent.futures import Executor
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from dpr.encoder.network import Network

GPU_SIDE, CPU_SIDE = 8192, 1024
"""Products of square matrices: on a GPU large enough to fill it, on a CPU about as large as a batch's own."""
GPU_TIMES = 30
CPU_SECONDS = 0.3
_PROBE_TOKENS = 8


@dataclass(frozen=True)
class ForwardCost:
    """Floating point operations of a forward pass over one row of L tokens: `a_token * L + a_pair * L * L`."""

    a_token: float
    """Products of the linear layers; one multiplication and one addition count as two operations."""
    a_pair: float
    """Attention: scores, and the sum of values they weigh."""

    @classmethod
    def of(cls, network: Network) -> "ForwardCost":
        """Counted while the network runs, so that layers which share weights count as often as they are used."""
        counted = 0.0

        def count(layer: nn.Module, inputs: tuple[Tensor, ...], _: Tensor) -> None:
            nonlocal counted
            if inputs[0].shape[-2:-1] == (_PROBE_TOKENS,):  # not a pooler, which sees the first token only
                counted += 2 * layer.weight.numel()  # type: ignore[operator]

        hooks = [each.register_forward_hook(count) for each in network.body.modules() if isinstance(each, nn.Linear)]
        ids_1L = torch.ones(1, _PROBE_TOKENS, dtype=torch.int64, device=network.body.device)
        with torch.inference_mode():
            network.hidden(ids_1L, torch.zeros_like(ids_1L), None)
        for hook in hooks:
            hook.remove()
        config = network.body.config
        return cls(counted, 4.0 * config.num_hidden_layers * config.hidden_size)

    def __call__(self, lengths_N: npt.NDArray[np.int64]) -> float:
        """Operations for all rows of these lengths in tokens."""
        lengths_N = lengths_N.astype(np.float64)
        return float(self.a_token * lengths_N.sum() + self.a_pair * (lengths_N**2).sum())


_measured: dict[tuple[str, torch.dtype, int], float] = {}


def peak(device: torch.device, dtype: torch.dtype, pool: Executor, threads: int) -> float:
    """Operations a second of matrix products in `dtype`; on a CPU by `threads` threads of `pool`, one product each.

    Measured in under a second, once in a process.
    """
    key = (str(device), dtype, threads)
    if key not in _measured:
        _measured[key] = _gpu_peak(device, dtype) if device.type == "cuda" else _cpu_peak(dtype, pool, threads)
    return _measured[key]


def _gpu_peak(device: torch.device, dtype: torch.dtype) -> float:
    """The best of three, after a first that warms the device up."""
    a, b = (torch.randn(GPU_SIDE, GPU_SIDE, device=device, dtype=dtype) for _ in range(2))
    out = torch.empty_like(a)

    def rate(times: int) -> float:
        torch.cuda.synchronize(device)
        started = time.perf_counter()
        for _ in range(times):
            torch.mm(a, b, out=out)
        torch.cuda.synchronize(device)
        return times * 2 * GPU_SIDE**3 / (time.perf_counter() - started)

    return max(rate(times) for times in (3, *[GPU_TIMES // 3] * 3))


def _cpu_peak(dtype: torch.dtype, pool: Executor, threads: int) -> float:
    def rate() -> float:
        a, b = (torch.randn(CPU_SIDE, CPU_SIDE).to(dtype) for _ in range(2))
        return 2 * CPU_SIDE**3 / _fastest_seconds(lambda: torch.mm(a, b))

    return sum(future.result() for future in [pool.submit(rate) for _ in range(threads)])


def _fastest_seconds(work: Callable[[], object]) -> float:
    """Of many times: other processes load their models while this is measured."""
    work()
    times, began = list[float](), time.perf_counter()
    while not times or time.perf_counter() - began < CPU_SECONDS:
        started = time.perf_counter()
        work()
        times.append(time.perf_counter() - started)
    return min(times)
