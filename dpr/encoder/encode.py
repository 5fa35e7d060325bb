"""Encoding: tokens in, one vector a row out, in batches that cost about the same.

On a CPU one thread computes each batch, and several batches are computed at once. So the bits of a vector do not depend
on the number of threads, no thread waits for another within a layer, and a batch's activations stay in its caches.

Shapes: N rows, B rows of a batch, Q questions, D dimensions.
"""

import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from dpr.encoder.compute import Compute
from dpr.encoder.encoded import EncodedQuestions
from dpr.encoder.forward_choice import GPU_THREADS, choose_forward
from dpr.encoder.memory import WithinMemory
from dpr.encoder.network import load_network
from dpr.encoder.packed_fp8 import FP8
from dpr.encoder.precision import choose_precision
from dpr.encoder.tokens import TokenBatch, TowerTokenizer
from dpr.encoder.tower import TowerSpec
from dpr.errors import EncoderError
from dpr.plurals import counted
from dpr.store.reasons import reason_of

CPU_TOKENS = {torch.float32: 1024, torch.bfloat16: 4096, FP8: 4096}
"""Tokens of a batch on a CPU, padding included: few enough that its activations stay in the caches."""
GPU_TOKENS = 262_144
"""Tokens of a batch on a GPU, about 4 GB of activations (measured on an H200: half as many are 1.5% slower)."""


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
        self._pool = start_pool(threads)
        if not on_cpu:
            self._pool.submit(lambda: torch.zeros(1, device=device))  # starts CUDA, which takes seconds, meanwhile
        network = load_network(tower).to(torch.float32, device)
        try:
            precision = self._pool.submit(choose_precision, network, tower, compute.precision, device).result()
            chosen = choose_forward(network, tower, precision.dtype, device, packing=compute.packing == "auto")
        except (RuntimeError, ValueError, IndexError) as error:
            raise EncoderError(
                f"model {tower.reference} was loaded, and its network ({tower.architecture}) fails on a short text: "
                f"{type(error).__name__}: {' '.join(str(error).split())[:300]}; name another model"
            ) from error
        tokens = compute.tokens_per_batch or (CPU_TOKENS[precision.dtype] if on_cpu else GPU_TOKENS)
        place = f"{counted(threads, 'thread')} on {device}"
        self._choice = f"{precision.reason}; {chosen.description}, {tokens} tokens a batch, {place}"
        self._tokens = tokens
        self._forward = chosen.forward

    @property
    def choice(self) -> str:
        """Describe the choice and its reasons for people; and whether smaller batches became necessary."""
        limit = self._forward.limit if isinstance(self._forward, WithinMemory) else ""
        return f"{self._choice}; {limit}" if limit else self._choice

    def encode(self, tokens: TokenBatch, dtype: npt.DTypeLike = np.float16) -> npt.NDArray[Any]:
        """Return vectors (N, D) of `dtype`, in the order of the rows.

        Components that are NaN or infinite, or beyond the range of `dtype`, are returned as they are: the caller finds
        these rows and decides. A row without tokens has a vector of zeros.
        """
        lengths_N = tokens.lengths()
        with_tokens = np.flatnonzero(lengths_N)
        vectors_ND = np.zeros((len(tokens), self.dim), dtype)

        def fill(rows_B: npt.NDArray[np.int64]) -> None:
            with torch.inference_mode(), np.errstate(over="ignore"):
                vectors_ND[rows_B] = self._forward(tokens.select(rows_B)).numpy()

        batches = self._forward.batches(lengths_N[with_tokens], self._tokens)
        for _ in self._pool.map(fill, (with_tokens[rows_B] for rows_B in batches)):
            pass  # an error in a batch is raised here
        return vectors_ND


class PassageEncoder:
    """Turns passages into vectors: E_P of the paper."""

    def __init__(self, tower: TowerSpec, compute: Compute = Compute(), network: TowerEncoder | None = None) -> None:
        """`network`: a loaded one of the same model, which is not loaded again."""
        self._tokenizer = TowerTokenizer(tower)
        self._network = network or TowerEncoder(tower, compute)

    def encode(self, titles: Sequence[str], texts: Sequence[str]) -> npt.NDArray[np.float16]:
        """Return vectors (N, D) float16. Raises ValueError if there are not as many titles as texts."""
        return self._network.encode(self._tokenizer.passages(titles, texts), np.float16)

    def encode_counted(self, texts: Sequence[str]) -> EncodedQuestions:
        """Return vectors of passages without titles, not rounded yet, and the tokens that these lost."""
        tokens = self._tokenizer.passages([""] * len(texts), texts)
        return EncodedQuestions(self._network.encode(tokens, np.float32), tokens.lost_N, tokens.cut())


def start_pool(threads: int) -> ThreadPoolExecutor:
    """Start threads in each of which PyTorch computes alone; the rest of the process keeps its number of threads.

    Raises EncoderError if the system does not let this process have so many.
    """
    before, started = torch.get_num_threads(), threading.Barrier(threads + 1)

    def start() -> None:
        torch.get_num_threads()  # otherwise the first computation in this thread would take the default again
        torch.set_num_threads(1)  # applies to the calling thread, and is the default of later threads
        with suppress(threading.BrokenBarrierError):
            started.wait()

    pool = ThreadPoolExecutor(threads, thread_name_prefix="encode", initializer=start)
    try:
        for _ in range(threads):
            pool.submit(int)
    except RuntimeError as error:
        started.abort()  # those that have started would wait for the others forever
        pool.shutdown()
        raise EncoderError(
            f"{threads:,} threads of an encoder cannot be started ({reason_of(error)}); lower "
            "resources.cpus_per_encoder, or allow more threads (ulimit -u, or pids.max of the container)"
        ) from error
    started.wait()
    torch.set_num_threads(before)
    return pool
