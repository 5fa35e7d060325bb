"""What training and coding run on, and the check of what goes in."""

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass

import faiss
import numpy as np
import numpy.typing as npt
import torch

from dpr.errors import IndexBuildError

Floats = npt.NDArray[np.float16] | npt.NDArray[np.float32]


@dataclass(frozen=True)
class Hardware:
    """Where an index is trained and vectors are coded; whoever places the work says it."""

    device: str | None = None
    """PyTorch device for the kinds of `dpr.index.torch_index`; None: FAISS does everything on CPU threads."""
    threads: int | None = None
    """CPU threads for FAISS, at most those that this process may use; None: as many as FAISS takes."""

    @classmethod
    def here(cls) -> "Hardware":
        """A process that has this machine to itself."""
        return cls("cuda" if torch.cuda.is_available() else None)


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
