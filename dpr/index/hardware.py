"""The hardware that an index is trained, coded and searched on, and the checks of vectors that enter it."""

import contextlib
import os
import threading
from collections.abc import Iterator
from contextvars import ContextVar
from dataclasses import dataclass
from functools import cache

import faiss
import numpy as np
import numpy.typing as npt
from threadpoolctl import ThreadpoolController  # type: ignore[import-untyped]

from dpr.errors import IndexBuildError

Floats = npt.NDArray[np.float16] | npt.NDArray[np.float32]
Lists = npt.NDArray[np.int64]
Codes = npt.NDArray[np.uint8]

TORCH_KINDS = (faiss.IndexIVFFlat, faiss.IndexIVFPQ, faiss.IndexIVFScalarQuantizer)
"""Kinds whose lists PyTorch fills. FAISS does everything for others, and for kinds behind a transform or a graph."""
BULK_QUESTIONS = 64
"""More questions than this are searched and re-scored by all threads."""

THREAD_BYTES = 64 * 2**20
"""A search of few questions has one thread for each so many bytes that it compares: 4 ms or more. To wake a second
thread takes a tenth of a millisecond on idle processors, and several where these are busy with other questions
(docs/log.md)."""

_blas_lock = threading.Lock()
_thread_limit: ContextVar[int | None] = ContextVar("thread_limit", default=None)


@dataclass(frozen=True)
class Hardware:
    """The hardware for training, coding and exact search; the executor chooses it."""

    device: str | None = None
    """PyTorch device, for `TORCH_KINDS` and exact neighbours; None: CPUs alone, and PyTorch is not imported."""
    threads: int | None = None
    """CPU threads, at most those that this process may use; None: no further bound."""

    @classmethod
    def here(cls) -> "Hardware":
        """Return the hardware of a process that has this machine to itself."""
        import torch

        return cls("cuda" if torch.cuda.is_available() else None)

    def device_for(self, index: faiss.Index) -> str | None:
        """Return the device that an index is trained and coded on; None if FAISS does it."""
        flat = type(index) in TORCH_KINDS and isinstance(faiss.downcast_index(index.quantizer), faiss.IndexFlat)
        return self.device if flat else None

    def cpu_threads(self) -> int:
        """Return how many CPU threads to use: `threads`, else what `faiss_threads` allows, else all."""
        return bulk_threads() if self.threads is None else _available(self.threads)


CPU = Hardware()


@contextlib.contextmanager
def faiss_threads(threads: int | None) -> Iterator[None]:
    """Limit FAISS, and all work in bulk, to `threads` threads; None changes nothing.

    Only the results of learned transforms (OPQ, PCA) depend on the number of threads.
    """
    before = faiss.omp_get_max_threads()
    limit = _thread_limit.get() if threads is None else _available(threads)
    if threads is not None:
        faiss.omp_set_num_threads(limit)
    token = _thread_limit.set(limit)
    try:
        yield
    finally:
        _thread_limit.reset(token)
        faiss.omp_set_num_threads(before)


def bulk_threads() -> int:
    """Return the threads for work in bulk: those that `faiss_threads` allows, else all that this process may use."""
    return _thread_limit.get() or _available(None)


def search_threads(questions: int, bytes_each: float) -> int:
    """Return the threads for a search of FAISS in which each question is compared with so many bytes.

    FAISS divides the questions among threads, so one question has one.
    """
    if questions > BULK_QUESTIONS:
        return bulk_threads()
    return max(1, min(questions, int(faiss.omp_get_max_threads()), 1 + int(questions * bytes_each) // THREAD_BYTES))


@contextlib.contextmanager
def serial_blas() -> Iterator[None]:
    """Let numpy's matrix products use one thread each, in the whole process; one caller at a time may enter.

    It is for products that are already divided among threads. Without it, each would start as many threads again, which
    busy-wait for each other: on 16 cores, that took six times the CPU time.
    """
    with _blas_lock, _blas().limit(limits=1):
        yield


@cache
def _blas() -> ThreadpoolController:
    # not FAISS's own BLAS: it is built with OpenMP, whose limits hold for one thread only
    return ThreadpoolController().select(user_api="blas").select(threading_layer="pthreads")


def _available(threads: int | None) -> int:
    usable = len(os.sched_getaffinity(0))
    return usable if threads is None else max(1, min(threads, usable))


def check_width(vectors_ND: Floats, dim: int, what: str) -> None:
    """Raise IndexBuildError unless the vectors that `what` names are rows of width `dim`."""
    if vectors_ND.ndim != 2 or vectors_ND.shape[1] != dim:
        raise IndexBuildError(
            f"{what} have shape {vectors_ND.shape} and the index takes (rows, {dim}); use the encoder it was made for"
        )


def as_float32(vectors_ND: Floats, dim: int, what: str) -> npt.NDArray[np.float32]:
    """Return `vectors_ND` as contiguous float32 (N, D), where D is `dim`.

    Raises IndexBuildError for vectors of another width, and for values that are not finite.
    """
    check_width(vectors_ND, dim, what)
    converted_ND = np.ascontiguousarray(vectors_ND, dtype=np.float32)
    bad_rows = np.flatnonzero(~np.isfinite(converted_ND).all(axis=1))
    if len(bad_rows):
        raise IndexBuildError(
            f"{len(bad_rows)} of {len(vectors_ND)} {what} hold NaN or infinity, the first is row {bad_rows[0]}; "
            "embed those passages again"
        )
    return converted_ND
