"""FAISS files: a codebook, or a shard of an index, written to a local file and read from one."""

from pathlib import Path

import faiss

from dpr.errors import IndexBuildError, IntegrityError
from dpr.index.kinds import core, reason


def write_faiss(index: faiss.Index, path: Path) -> None:
    """Write an index to a local file. Raises IndexBuildError, leaving no file, if that fails."""
    try:
        faiss.write_index(index, str(path))
    except RuntimeError as error:
        path.unlink(missing_ok=True)
        raise IndexBuildError(
            f"index file {path} cannot be written: {reason(error)}; free disk space or use another folder"
        ) from error


def read_faiss(path: Path, *, mapped: bool = False) -> faiss.Index:
    """Read an index from a local file whose checksum was verified.

    `mapped` leaves plain inverted lists in the file, to be paged in as they are searched. Raises IntegrityError if it
    is not a file that FAISS can read.
    """
    try:
        index = faiss.read_index(str(path), faiss.IO_FLAG_MMAP if mapped else 0)
    except RuntimeError as error:
        raise IntegrityError(f"index file {path} cannot be read: {reason(error)}; build it again") from error
    inner = core(index)
    if isinstance(inner, faiss.IndexIVFPQFastScan):
        # FAISS does not restore it when reading, and without it decoding crashes the process
        inner.fine_quantizer = inner.pq
    return index
