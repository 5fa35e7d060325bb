"""What training and coding run on, and the check of what goes in."""

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass

import faiss
import numpy as np
import numpy.typing as npt

from dpr.errors import IndexBuildError

Floats = npt.NDArray[np.float16] | npt.NDArray[np.float32]
Lists = npt.NDArray[np.int64]
Codes = npt.NDArray[np.uint8]

TORCH_KINDS = (faiss.IndexIVFFlat, faiss.IndexIVFPQ, faiss.IndexIVFScalarQuantizer)
"""Kinds whose lists PyTorch fills; of others, and of those behind a transform or a graph, FAISS does everything."""


@dataclass(frozen=True)
class Hardware:
    """Where an index is trained and vectors are coded; whoever places the work says it."""

    device: str | None = None
    """PyTorch device for `TORCH_KINDS` (imported only then, it takes long); None: FAISS does everything on CPUs."""
    threads: int | None = None
    """CPU threads for FAISS, at most those that this process may use; None: as many as FAISS takes."""

    @classmethod
    def here(cls) -> "Hardware":
        """A process that has this machine to itself."""
        import torch

        return cls("cuda" if torch.cuda.is_available() else None)

    def device_for(self, index: faiss.Index) -> str | None:
        """The device that an index is trained and coded on; None if FAISS does it."""
        flat = type(index) in TORCH_KINDS and isinstance(faiss.downcast_index(index.quantizer), faiss.IndexFlat)
        return self.device if flat else None


@contextlib.contextmanager
def faiss_threads(threads: int | None) -> Iterator[None]:
    """Within, FAISS uses so many threads. Only learned transforms (OPQ, PCA) give other results with another number."""
    before = faiss.omp_get_max_threads()
    if threads is not None:
        faiss.omp_set_num_threads(max(1, min(threads, len(os.sched_getaffinity(0)))))
    try:
        yield
    finally:
        faiss.omp_set_num_threads(before)


def check_width(vectors_ND: Floats, dim: int, what: str) -> None:
    """Raise IndexBuildError unless the vectors that `what` names are rows of width `dim`."""
    if vectors_ND.ndim != 2 or vectors_ND.shape[1] != dim:
        raise IndexBuildError(
            f"{what} have shape {vectors_ND.shape} and the index takes (rows, {dim}); use the encoder it was made for"
        )


def as_float32(vectors_ND: Floats, dim: int, what: str) -> npt.NDArray[np.float32]:
    """`vectors_ND` as contiguous float32 of width `dim`; IndexBuildError for another shape or values not finite."""
    check_width(vectors_ND, dim, what)
    converted_ND = np.ascontiguousarray(vectors_ND, dtype=np.float32)
    bad_rows = np.flatnonzero(~np.isfinite(converted_ND).all(axis=1))
    if len(bad_rows):
        raise IndexBuildError(
            f"{len(bad_rows)} of {len(vectors_ND)} {what} hold NaN or infinity, the first is row {bad_rows[0]}; "
            "embed those passages again"
        )
    return converted_ND
