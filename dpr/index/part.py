"""Parts: one segment's vectors, coded with the codebook and grouped by inverted list.

A part is a safetensors file of three tensors. So a merge reads any range of lists without the rest. The coarse
centroids, which a FAISS index would repeat in each part (200 MB for 65,536 lists of 768 dimensions), are left out:

    list_sizes  uint32 [L]     vectors in each list; one list for an index without lists
    rows        uint32 [N]     row numbers within the segment, list by list, ascending within a list
    codes       uint8  [N, B]  the code of each of these rows, as FAISS's standalone codec gives it

Its metadata names the SHA-256 of the codebook's bytes: codes mean nothing under another codebook.

Shapes: L lists, N rows, B bytes of a code.
"""

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError
from safetensors.numpy import save_file

from dpr.errors import IndexBuildError, IntegrityError
from dpr.formats.tensor_file import TensorHeader, read_tensor_header

ROW_BYTES = 4
"""Bytes of the row number that is stored with each code."""
CODEBOOK = "codebook"
"""Our key in the file's metadata."""
TENSORS = {"list_sizes": ("U32", np.uint32), "rows": ("U32", np.uint32), "codes": ("U8", np.uint8)}


class Coded(NamedTuple):
    """Vectors that were coded."""

    lists_N: npt.NDArray[np.int64]
    """The inverted list of each; zero for a kind without lists."""
    codes_NB: npt.NDArray[np.uint8]
    distances_N: npt.NDArray[np.float32]
    """How far each is from the centroid of its list, squared and relative to its own squared length; zero for a kind
    without lists."""


@dataclass(frozen=True)
class Part:
    """The coded vectors of one segment."""

    list_sizes_L: npt.NDArray[np.uint32]
    rows_N: npt.NDArray[np.uint32]
    codes_NB: npt.NDArray[np.uint8]
    distances_N: npt.NDArray[np.float32]
    """By row: how far it is from the centroid of its list (`Coded`). Not in the file."""

    @property
    def ntotal(self) -> int:
        """Return the number of vectors in the part."""
        return len(self.rows_N)


def write_part(part: Part, path: Path, codebook_sha256: str) -> None:
    """Write a part, coded with the codebook whose bytes have that digest, to a local file.

    Equal parts give equal bytes. Raises IndexBuildError, leaving no file, if that fails.
    """
    tensors: dict[str, npt.NDArray[Any]] = {
        "list_sizes": part.list_sizes_L,
        "rows": part.rows_N,
        "codes": np.ascontiguousarray(part.codes_NB),
    }
    try:
        save_file(tensors, path, {CODEBOOK: codebook_sha256})
    except (OSError, SafetensorError) as error:
        path.unlink(missing_ok=True)
        raise IndexBuildError(
            f"part {path} cannot be written: {error}; free disk space or use another folder"
        ) from error


class PartFile:
    """A part in a file, of which only some ranges are read. Memory holds one number per list."""

    def __init__(self, path: Path, name: str, codebook_sha256: str) -> None:
        """Open a part file whose checksum was verified.

        Raises IntegrityError, with `name`, if it is not a part, or was coded with a codebook of another digest.
        """
        self._path, self._name = path, name
        header = self._header()
        self._tensors = header.tensors
        self._check_codebook(header.metadata.get(CODEBOOK), codebook_sha256)
        self.ntotal, self.code_bytes = self._shape("codes", 2)
        (lists,) = self._shape("list_sizes", 1)
        sizes_L = np.empty(lists, np.uint32)
        with self._opened() as descriptor:
            self._fill(descriptor, "list_sizes", 0, sizes_L)
        ends_L = np.cumsum(sizes_L, dtype=np.int64)
        listed = int(ends_L[-1]) if lists else 0
        if not self._shape("rows", 1) == (self.ntotal,) == (listed,):
            raise IntegrityError(
                f"{name} has {self.ntotal} codes, {self._shape('rows', 1)[0]} rows and {listed} places in its lists; "
                "the three must be equal, so build it again"
            )
        self.list_starts_L: npt.NDArray[np.uint32] = np.concatenate([[0], ends_L]).astype(np.uint32)
        """Where each list starts in the list order, and where the last ends (L + 1,)."""

    def rows(self) -> npt.NDArray[np.uint32]:
        """Return all row numbers (N,) uint32, in the order of the lists."""
        rows_N = np.empty(self.ntotal, np.uint32)
        with self._opened() as descriptor:
            self._fill(descriptor, "rows", 0, rows_N)
        return rows_N

    def read_into(self, start: int, rows_n: npt.NDArray[np.uint32], codes_nB: npt.NDArray[np.uint8]) -> None:
        """Read row numbers and codes from position `start` of the list order on, as many as the arrays have room for.

        Raises IntegrityError if the file has become shorter.
        """
        with self._opened() as descriptor:
            self._fill(descriptor, "rows", start, rows_n)
            self._fill(descriptor, "codes", start, codes_nB)

    def _header(self) -> TensorHeader:
        try:
            with self._path.open("rb") as file:
                header = read_tensor_header(file)
        except ValueError:
            header = TensorHeader({}, {})
        types = {name: place.dtype for name, place in header.tensors.items()}
        if types != {name: dtype for name, (dtype, _) in TENSORS.items()}:
            raise IntegrityError(f"{self._name} is not an index part (tensors {', '.join(TENSORS)}); build it again")
        return header

    def _check_codebook(self, found: str | None, expected: str) -> None:
        if found != expected:
            coded = "names no codebook" if found is None else f"was coded with the codebook of SHA-256 {found}"
            raise IntegrityError(
                f"{self._name} {coded} and the index has that of {expected}; delete the part's record and run again"
            )

    def _shape(self, tensor: str, axes: int) -> tuple[int, ...]:
        shape = self._tensors[tensor].shape
        if len(shape) != axes:
            raise IntegrityError(f"{self._name}: tensor {tensor} has shape {shape}, not {axes} axes; build it again")
        return shape

    def _fill(self, descriptor: int, tensor: str, start: int, array: npt.NDArray[Any]) -> None:
        place = self._tensors[tensor].start + start * array.strides[0]
        rest = array.reshape(-1).view(np.uint8).data
        while len(rest):
            found = os.preadv(descriptor, [rest], place)
            if not found:
                raise IntegrityError(f"{self._name} ends before its {tensor} do; build it again")
            rest, place = rest[found:], place + found

    @contextlib.contextmanager
    def _opened(self) -> Iterator[int]:
        # opened for each read: the number of parts is unbounded, but that of open files is not
        descriptor = os.open(self._path, os.O_RDONLY)
        try:
            yield descriptor
        finally:
            os.close(descriptor)
