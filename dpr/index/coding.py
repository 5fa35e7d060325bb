"""Coding the vectors of one segment with the codebook, which makes its part.

FAISS's standalone codec gives the same codes as adding to the index does, and leaves the codebook as it is.

Shapes: N rows, D dimensions, B bytes of a code, L lists.
"""

from collections.abc import Callable

import faiss
import numpy as np
import numpy.typing as npt

from dpr.errors import IndexBuildError
from dpr.index.hardware import Floats, Hardware, Lists, as_float32
from dpr.index.kinds import Storage, core, encode, inverted, storage, transformed
from dpr.index.list_groups import groups_of
from dpr.index.part import Coded, Part

BLOCK_ROWS = 32_768
Coder = Callable[[Floats, str], Coded]
"""Maps vectors (N, D), with their name in error messages, to codes."""


class FaissCoder:
    """Codes vectors with FAISS, on CPU threads."""

    def __init__(self, codebook: faiss.Index) -> None:
        self._codebook = codebook
        ivf = self._ivf = inverted(codebook)
        self._number_bytes = 0 if ivf is None else ivf.coarse_code_size()
        self._coarse_LD = None if ivf is None else ivf.quantizer.reconstruct_n(0, ivf.nlist)
        self._groups = None if ivf is None else groups_of(ivf)

    def __call__(self, vectors_ND: Floats, what: str) -> Coded:
        """Code vectors. Raises IndexBuildError for vectors of another width or that are not finite."""
        whole_ND = as_float32(vectors_ND, self._codebook.d, what)
        if self._groups is not None:
            placed_ND = transformed(self._codebook, whole_ND)
            lists_N = self._groups.lists(placed_ND)
            return Coded(lists_N, encode(self._ivf, placed_ND, lists_N), self._distances(whole_ND, lists_N))
        encoded_NB = self._codebook.sa_encode(whole_ND)
        # the number of the list precedes the code, little endian
        padded_N8 = np.zeros((len(encoded_NB), 8), np.uint8)
        padded_N8[:, : self._number_bytes] = encoded_NB[:, : self._number_bytes]
        lists_N = padded_N8.view("<i8")[:, 0]
        return Coded(lists_N, encoded_NB[:, self._number_bytes :], self._distances(whole_ND, lists_N))

    def decode(self, coded: Coded) -> npt.NDArray[np.float32]:
        """Return the vectors (N, D) that codes stand for."""
        lists_N8 = coded.lists_N.astype("<i8").view(np.uint8).reshape(-1, 8)
        encoded_NB = np.concatenate([lists_N8[:, : self._number_bytes], coded.codes_NB], axis=1)
        decoded_ND: npt.NDArray[np.float32] = self._codebook.sa_decode(encoded_NB)
        return decoded_ND

    def _distances(self, vectors_ND: npt.NDArray[np.float32], lists_N: Lists) -> npt.NDArray[np.float32]:
        if self._coarse_LD is None:
            return np.zeros(len(vectors_ND), np.float32)
        vectors_ND = transformed(self._codebook, vectors_ND)
        residuals_ND = vectors_ND - self._coarse_LD[lists_N]
        lengths_N = np.einsum("nd,nd->n", vectors_ND, vectors_ND)
        distances_N: npt.NDArray[np.float32] = np.einsum("nd,nd->n", residuals_ND, residuals_ND)
        distances_N /= np.maximum(lengths_N, np.finfo(np.float32).tiny)
        return distances_N


def coder(codebook: faiss.Index, hardware: Hardware) -> Coder:
    """Return the coder of a codebook for this hardware."""
    device = hardware.device_for(codebook)
    if device is None:
        return FaissCoder(codebook)
    from dpr.index.torch_index import TorchCoder

    return TorchCoder(codebook, device)


def prepare(hardware: Hardware) -> None:
    """Load what training and coding need on a GPU, which takes seconds, if there is one."""
    if hardware.device is not None:
        from dpr.index.torch_index import load_kernels

        load_kernels(hardware.device)


def build_part(
    codebook: faiss.Index,
    vectors_ND: npt.NDArray[np.float16],
    block_rows: int = BLOCK_ROWS,
    code: Coder | None = None,
) -> Part:
    """Code one segment: row i of `vectors_ND` (N, D) float16, which may be a memory map, is row i of the segment.

    At most `block_rows` vectors are held in float32 at a time. `code` is the codebook's coder, by default FAISS.
    Raises IndexBuildError for vectors of another width or that are not finite, and for a kind that cannot be built from
    parts.
    """
    if storage(codebook) is Storage.WHOLE:
        raise IndexBuildError(
            f"an index of kind {type(core(codebook)).__name__} cannot be built from parts; build it whole"
        )
    code = code or FaissCoder(codebook)
    whole = Coded(
        np.empty(len(vectors_ND), np.int64),
        np.empty((len(vectors_ND), core(codebook).code_size), np.uint8),
        np.empty(len(vectors_ND), np.float32),
    )
    for start in range(0, len(vectors_ND), block_rows):
        block = slice(start, start + block_rows)
        some = code(vectors_ND[block], f"vectors of rows {start} and on")
        whole.lists_N[block], whole.codes_NB[block], whole.distances_N[block] = some
    return _grouped(codebook, whole)


def _grouped(codebook: faiss.Index, coded: Coded) -> Part:
    """Return the part of coded vectors, list by list."""
    inner = core(codebook)
    lists = inner.nlist if isinstance(inner, faiss.IndexIVF) else 1
    order = np.argsort(coded.lists_N, kind="stable")
    sizes_L = np.bincount(coded.lists_N, minlength=lists).astype(np.uint32)
    return Part(sizes_L, order.astype(np.uint32), coded.codes_NB[order], coded.distances_N)
