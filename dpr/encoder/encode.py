"""Encoding: tokens in, one vector a row out, in batches of equal work.

On a CPU every batch is computed by one thread, and several batches at once: so the bits of a vector do not depend on
how many threads there are, no thread waits for another within a layer, and a batch's activations stay in its caches.

Shapes: N rows, B rows of a batch, Q questions, D dimensions.
"""

import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from dpr.encoder.choose import GPU_THREADS, choose_way
from dpr.encoder.compute import Compute
from dpr.encoder.limit import ForwardCost, peak
from dpr.encoder.memory import WithinMemory
from dpr.encoder.model import load_network
from dpr.encoder.precision import choose_precision
from dpr.encoder.spec import EncoderSpec, TowerSpec
from dpr.encoder.tokens import TokenBatch, TowerTokenizer

CPU_TOKENS = {torch.float32: 1024, torch.bfloat16: 4096}
"""Tokens of a batch on a CPU, padding included: few enough that its activations stay in the caches."""
GPU_TOKENS = 262_144
"""Tokens of a batch on a GPU, about 4 GB of activations (measured on an H200: half of it is 1.5% slower)."""


class TowerEncoder:
    """One tower, loaded and ready.

    The same tokens and `compute` give the same bits in any process of a machine, whatever the number of threads. Raises
    EncoderError if the model cannot be loaded.
    """

    def __init__(self, tower: TowerSpec, compute: Compute = Compute()) -> None:
        device = torch.device(compute.device or ("cuda" if torch.cuda.is_available() else "cpu"))
        on_cpu = device.type == "cpu"
        threads = (compute.threads or torch.get_num_threads()) if on_cpu else GPU_THREADS
        self.dim = tower.dim
        self._pool = _pool_of(threads)
        network = load_network(tower).to(torch.float32, device)
        chosen = self._pool.submit(choose_precision, network, tower, compute.precision, device).result()
        self._cost = ForwardCost.of(network)
        way = choose_way(network, tower, chosen.dtype, device, packing=compute.packing == "auto")
        tokens = compute.tokens_per_batch or (CPU_TOKENS[chosen.dtype] if on_cpu else GPU_TOKENS)
        on = f"{threads} thread{'s' if threads > 1 else ''} on {device}"
        self._choice = f"{chosen.said}; {way.said}, {tokens} tokens a batch, {on}"
        self._tokens = tokens
        self._forward = way.forward
        self._peak = partial(peak, device, chosen.dtype, self._pool, threads)

    @property
    def choice(self) -> str:
        """What was chosen, and why, for people; and whether memory has made it choose again."""
        said = self._forward.said if isinstance(self._forward, WithinMemory) else ""
        return f"{self._choice}; {said}" if said else self._choice

    def encode(self, tokens: TokenBatch, dtype: npt.DTypeLike = np.float16) -> npt.NDArray[Any]:
        """Vectors (N, D) of `dtype`, in the order of the rows.

        NaN and infinite components, also those beyond the range of `dtype`, are returned as they are: the caller finds
        the rows and decides.
        """
        vectors_ND = np.empty((len(tokens), self.dim), dtype)

        def fill(rows_B: npt.NDArray[np.int64]) -> None:
            with torch.inference_mode(), np.errstate(over="ignore"):
                vectors_ND[rows_B] = self._forward(tokens.select(rows_B)).numpy()

        batches = self._forward.batches(tokens.lengths(), self._tokens)
        for _ in self._pool.map(fill, batches):
            pass  # what a batch raises is raised here
        return vectors_ND

    def limit_seconds(self, lengths_N: npt.NDArray[np.int64]) -> float:
        """What rows of these lengths in tokens would take if the device did nothing but matrix products at its best.

        That is measured at the first call in a process, which takes under a second.
        """
        return self._cost(lengths_N) / self._peak()


class QuestionEncoder:
    """Questions to vectors: E_Q of the paper."""

    def __init__(self, spec: EncoderSpec, compute: Compute = Compute()) -> None:
        self._tokenizer = TowerTokenizer(spec.question)
        self._encoder = TowerEncoder(spec.question, compute)
        self.choice = self._encoder.choice

    def encode(self, questions: Sequence[str]) -> npt.NDArray[np.float32]:
        """Vectors (Q, D) float32."""
        return self._encoder.encode(self._tokenizer.questions(questions), np.float32)


class PassageEncoder:
    """Passages to vectors: E_P of the paper."""

    def __init__(self, spec: EncoderSpec, compute: Compute = Compute()) -> None:
        self._tokenizer = TowerTokenizer(spec.passage)
        self._encoder = TowerEncoder(spec.passage, compute)
        self.choice = self._encoder.choice

    def encode(self, titles: Sequence[str], texts: Sequence[str]) -> npt.NDArray[np.float16]:
        """Vectors (N, D) float16. ValueError if there are not as many titles as texts."""
        return self._encoder.encode(self._tokenizer.passages(titles, texts), np.float16)


def _pool_of(threads: int) -> ThreadPoolExecutor:
    """Threads in each of which PyTorch computes alone; the rest of the process keeps its setting."""
    before, started = torch.get_num_threads(), threading.Barrier(threads + 1)

    def start() -> None:
        torch.set_num_threads(1)  # holds for the calling thread, and as the default of threads to come
        started.wait()

    pool = ThreadPoolExecutor(threads, thread_name_prefix="encode", initializer=start)
    for _ in range(threads):
        pool.submit(int)
    started.wait()
    torch.set_num_threads(before)
    return pool
