"""Encoding questions on a CPU in eight bits, through OpenVINO and without PyTorch.

One call of the library computes a batch, and other threads of Python run meanwhile. One thread computes each batch, as
in `dpr.encoder.encode`.

Shapes: N rows, B rows of a batch, T tokens of a batch, H hidden size, D dimensions.
"""

import os
import queue
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from dpr.encoder.compute import Compute
from dpr.encoder.openvino_bert import GROUP, BertWeights, bert_graph, load_openvino, read_bert
from dpr.encoder.tokens import TokenBatch
from dpr.encoder.tower import TowerSpec
from dpr.fingerprint import fingerprint
from dpr.store.cache import local_cache

BATCH_TOKENS = 128
"""Tokens of a batch: with more, the scores between tokens of different rows, which nobody uses, take too long."""
STEP_TOKENS, SHORT_STEP_TOKENS, SHORT_TOKENS = 16, 8, 64
"""Batches are padded to multiples of this many tokens, short ones to multiples of fewer.

For each number of tokens, the library compiles products in 5 to 30 ms.
"""
MIN_COSINE = 0.995
"""The least cosine between a vector in eight bits and the same one in fp32 (docs/decisions/0032: what it loses)."""
ROWS, ROW_TOKENS = 8, 32
"""Rows that are compared, and tokens of each: about as long as questions."""
FAR_BELOW = np.float32(-1e9)
_POOLINGS = ("cls", "max", "mean")
_PRODUCTS = {"avx512_vnni", "avx_vnni"}
"""Flags of processors with products of eight bits."""


class NotHereError(Exception):
    """Questions cannot be encoded in eight bits: this machine, the model or the settings do not allow it."""


class Int8Encoder:
    """One tower of BERT's kind, loaded and ready; see `TowerEncoder`, whose place it takes for questions.

    Raises NotHereError, with the reason, where it cannot be used.
    """

    def __init__(self, tower: TowerSpec, compute: Compute = Compute()) -> None:
        bert = _usable(tower, compute)
        cosine = _remembered_cosine(tower, bert)
        if not cosine >= MIN_COSINE:
            raise NotHereError(f"a vector has a cosine of {cosine:.4f} with fp32, under {MIN_COSINE}")
        threads = compute.threads or _threads()
        self.dim = tower.dim
        self._packed = _PackedBert(tower, bert, threads, rounded=True)
        self._tokens = compute.tokens_per_batch or BATCH_TOKENS
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="encode")
        self.choice = (
            f"int8 by OpenVINO, because its vectors have a cosine of {cosine:.4f} or more with fp32; packed without "
            f"padding, {self._tokens} tokens a batch, {threads} thread{'s' if threads > 1 else ''} on cpu"
        )

    def encode(self, tokens: TokenBatch, dtype: npt.DTypeLike = np.float16) -> npt.NDArray[Any]:
        """Return vectors (N, D) of `dtype`, in the order of the rows. A row without tokens has a vector of zeros."""
        with_tokens = np.flatnonzero(tokens.lengths())
        vectors_ND = np.zeros((len(tokens), self.dim), dtype)

        def fill(rows_B: npt.NDArray[np.int64]) -> None:
            vectors_ND[rows_B] = self._packed.vectors(tokens.select(rows_B))

        batches = [with_tokens[rows_B] for rows_B in _batches(tokens.lengths()[with_tokens], self._tokens)]
        if len(batches) == 1:  # waking another thread would only take time
            fill(batches[0])
        else:
            for _ in self._pool.map(fill, batches):
                pass  # an error in a batch is raised here
        return vectors_ND

    def warm_up(self) -> None:
        """Compute a batch of every size, so that no question has to wait while the library compiles."""
        for size in sorted({_size(count) for count in range(1, self._tokens + 1)}):
            ids_T = np.zeros(size, np.int32)
            self._packed.warm_up(TokenBatch(ids_T, ids_T.astype(np.uint8), np.arange(size + 1)))


class _PackedBert:
    """The graph, compiled; several threads may call it at once.

    It is compiled twice, since OpenVINO either computes in the thread that calls, one batch at a time, or in threads of
    its own, which have to be woken: a tenth of what a question takes. So the first batch is computed in its own thread.
    """

    def __init__(self, tower: TowerSpec, bert: BertWeights, threads: int, *, rounded: bool) -> None:
        graph = bert_graph(bert, rounded=rounded)
        settings = {
            "INFERENCE_PRECISION_HINT": "f32",
            "DYNAMIC_QUANTIZATION_GROUP_SIZE": str(GROUP if rounded else 0),
            "ENABLE_CPU_PINNING": "NO",  # otherwise all replicas would take the first processors
        }

        def compiled(streams: int) -> Any:
            counts = {"NUM_STREAMS": str(streams), "INFERENCE_NUM_THREADS": str(max(1, streams))}
            return load_openvino().Core().compile_model(graph, "CPU", settings | counts)

        self._requests = [compiled(0).create_infer_request()]
        if threads > 1:
            others = compiled(threads - 1)
            self._requests += [others.create_infer_request() for _ in range(threads - 1)]
        self._free: queue.PriorityQueue[int] = queue.PriorityQueue()
        """Which of them compute nothing; the first of these is taken."""
        for place in range(threads):
            self._free.put(place)
        self._words, self._types, self._places = bert.tables
        self._tower = tower

    def warm_up(self, tokens: TokenBatch) -> None:
        """Compute a batch in both graphs, so that the library compiles what it needs; streams share that."""
        for request in self._requests[:2]:
            self._vectors(tokens, request)

    def vectors(self, tokens: TokenBatch) -> npt.NDArray[np.float32]:
        """Return vectors (B, D) of rows, all of which have tokens."""
        place = self._free.get()
        try:
            return self._vectors(tokens, self._requests[place])
        finally:
            self._free.put(place)

    def _vectors(self, tokens: TokenBatch, request: Any) -> npt.NDArray[np.float32]:
        lengths_B = tokens.lengths()
        count = len(tokens.ids_T)
        size = _size(count)
        rows_T = np.full(size, -1)
        rows_T[:count] = np.repeat(np.arange(len(lengths_B)), lengths_B)
        places_T = np.arange(count) - np.repeat(tokens.offsets[:-1], lengths_B)
        summed_TH = np.zeros((size, self._words.shape[1]), np.float32)
        summed_TH[:count] = self._words[tokens.ids_T] + self._types[tokens.types_T] + self._places[places_T]
        mask_TT = np.where(rows_T[:, np.newaxis] == rows_T, np.float32(0), FAR_BELOW)[np.newaxis, np.newaxis]
        hidden_TH = request.infer([summed_TH, mask_TT], share_inputs=True, share_outputs=True)[0]
        pooled_BH = self._pooled(hidden_TH[:count], tokens.offsets[:-1], lengths_B)
        vectors_BD: npt.NDArray[np.float32] = pooled_BH[:, : self._tower.dim]
        if self._tower.normalize:
            lengths_B1 = np.maximum(np.linalg.norm(vectors_BD, axis=1, keepdims=True), np.float32(1e-12))
            vectors_BD = np.divide(vectors_BD, lengths_B1, dtype=np.float32)
        return vectors_BD

    def _pooled(
        self, hidden_TH: npt.NDArray[np.float32], firsts_B: npt.NDArray[np.int64], lengths_B: npt.NDArray[np.int64]
    ) -> npt.NDArray[np.float32]:
        if self._tower.pooling == "cls":
            return hidden_TH[firsts_B]
        if self._tower.pooling == "max":
            return np.maximum.reduceat(hidden_TH, firsts_B, axis=0)
        means_BH: npt.NDArray[np.float32] = np.add.reduceat(hidden_TH, firsts_B, axis=0)
        means_BH /= lengths_B[:, np.newaxis].astype(np.float32)
        return means_BH


def _size(tokens: int) -> int:
    """Return how many tokens are computed for so many."""
    step = SHORT_STEP_TOKENS if tokens <= SHORT_TOKENS else STEP_TOKENS
    return -(-tokens // step) * step


def _batches(lengths_N: npt.NDArray[np.int64], tokens: int) -> list[npt.NDArray[np.int64]]:
    """Return the row numbers of each batch, which is at most `tokens` tokens or one row."""
    ends_N, batches, first = np.cumsum(lengths_N), [], 0
    while first < len(lengths_N):
        before = ends_N[first - 1] if first else 0
        last = max(first + 1, int(np.searchsorted(ends_N, before + tokens, "right")))
        batches.append(np.arange(first, last))
        first = last
    return batches


def _usable(tower: TowerSpec, compute: Compute) -> BertWeights:
    """Return the weights of a tower that can be encoded with here. Raises NotHereError, with the reason, for others.

    Nothing is timed, so that a machine always chooses the same.
    """
    if compute.precision != "auto" or compute.packing != "auto" or compute.device not in (None, "cpu"):
        raise NotHereError("precision, packing or device were requested")
    if compute.device is None and _may_have_gpu():
        raise NotHereError("this machine may have a GPU")
    if not _multiplies_int8():
        raise NotHereError("this processor has no products of eight bits")
    if tower.head or not tower.prompt_pooled or tower.pooling not in _POOLINGS:
        raise NotHereError("only the mean, the maximum or the first of token vectors is computed")
    bert = read_bert(tower.folder, tower.reference)
    if bert is None:
        raise NotHereError("only BERT is computed, in float32 and with sizes that 128 divides")
    try:
        load_openvino()
    except ImportError:
        raise NotHereError("OpenVINO is not installed") from None
    return bert


def _remembered_cosine(tower: TowerSpec, bert: BertWeights) -> float:
    """Return the lowest cosine between vectors in eight bits and in fp32; this machine's cache remembers it."""
    library = str(load_openvino().__version__)
    parts = [tower.digest, tower.pooling, tower.dim, tower.normalize, library, GROUP, ROWS, ROW_TOKENS]

    def measure(path: Path) -> None:
        ids_T = np.random.default_rng(0).integers(0, len(bert.tables[0]), ROWS * ROW_TOKENS, dtype=np.int32)
        tokens = TokenBatch(ids_T, np.zeros(len(ids_T), np.uint8), np.arange(0, len(ids_T) + 1, ROW_TOKENS))
        one, other = (_PackedBert(tower, bert, 1, rounded=rounded).vectors(tokens) for rounded in (True, False))
        lengths_B = np.linalg.norm(one, axis=1) * np.linalg.norm(other, axis=1)
        path.write_text(str(float(((one * other).sum(1) / lengths_B).min())), encoding="utf-8")

    return float(local_cache().fetch(f"int8/{fingerprint(parts)}.txt", measure).read_text(encoding="utf-8"))


def _threads() -> int:
    """Return how many threads compute: OMP_NUM_THREADS, which Ray sets, or one for each processor."""
    wanted = os.environ.get("OMP_NUM_THREADS", "")
    return int(wanted) if wanted.isdigit() and int(wanted) else len(os.sched_getaffinity(0))


def _may_have_gpu() -> bool:
    """Return whether PyTorch could find a GPU; PyTorch itself, which knows, takes seconds to import."""
    return os.environ.get("CUDA_VISIBLE_DEVICES") not in ("", "-1") and Path("/dev/nvidiactl").exists()


def _multiplies_int8() -> bool:
    if not sys.platform.startswith("linux"):
        return False
    flags = Path("/proc/cpuinfo").read_text(encoding="utf-8").partition("flags")[2].partition("\n")[0]
    return not _PRODUCTS.isdisjoint(flags.split())
