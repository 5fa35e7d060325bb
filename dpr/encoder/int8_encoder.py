"""Encoding questions on a CPU in eight bits, through OpenVINO and without PyTorch.

Shapes: N rows, B rows of a batch, D dimensions.
"""

import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from dpr.encoder.compute import Compute
from dpr.encoder.openvino_batches import OpenVinoBert, computed_tokens
from dpr.encoder.openvino_bert import GROUP, BertWeights, load_openvino, read_bert
from dpr.encoder.tokens import TokenBatch
from dpr.encoder.tower import TowerSpec
from dpr.fingerprint import fingerprint
from dpr.plurals import counted
from dpr.store.cache import local_cache

BATCH_TOKENS = 128
"""Tokens of a batch: with more, the scores between tokens of different rows, which nobody uses, take too long."""
MIN_COSINE = 0.995
"""The least cosine between a vector in eight bits and the same one in fp32 (docs/decisions/0032: what it loses)."""
ROWS, ROW_TOKENS = 8, 32
"""Rows that are compared, and tokens of each: about as long as questions."""
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
        self._packed = OpenVinoBert(tower, bert, threads, rounded=True)
        self._tokens = compute.tokens_per_batch or BATCH_TOKENS
        self.choice = (
            f"int8 by OpenVINO, because its vectors have a cosine of {cosine:.4f} or more with fp32; packed without "
            f"padding, {self._tokens} tokens a batch, {counted(threads, 'thread')} on cpu"
        )

    def encode(self, tokens: TokenBatch, dtype: npt.DTypeLike = np.float16) -> npt.NDArray[Any]:
        """Return vectors (N, D) of `dtype`, in the order of the rows. A row without tokens has a vector of zeros."""
        if len(tokens) == 1 and len(tokens.ids_T):
            return self._packed.vectors([tokens])[0].astype(dtype, copy=False)
        with_tokens = np.flatnonzero(tokens.lengths())
        vectors_ND = np.zeros((len(tokens), self.dim), dtype)
        batches = [with_tokens[rows_B] for rows_B in _batches(tokens.lengths()[with_tokens], self._tokens)]
        found = self._packed.vectors([tokens.select(rows_B) for rows_B in batches])
        for rows_B, vectors_BD in zip(batches, found, strict=True):
            vectors_ND[rows_B] = vectors_BD
        return vectors_ND

    def warm_up(self) -> None:
        """Compute a batch of every size, so that no question has to wait while the library compiles."""
        for size in sorted({computed_tokens(count) for count in range(1, self._tokens + 1)}):
            ids_T = np.zeros(size, np.int32)
            self._packed.warm_up(TokenBatch(ids_T, ids_T.astype(np.uint8), np.arange(size + 1)))


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
        one, other = (OpenVinoBert(tower, bert, 1, rounded=rounded).vectors([tokens])[0] for rounded in (True, False))
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
