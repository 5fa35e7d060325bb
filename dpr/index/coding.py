"""Coding the vectors of one segment with the codebook, which makes its part.

FAISS's standalone codec gives the same codes as adding to the index does, and leaves the codebook as it is.

Shapes: N rows, D dimensions, B bytes of a code, L lists.
"""

from collections.abc import Callable

import faiss
import numpy as np
import numpy.typing as npt

from dpr.errors import IndexBuildError
from dpr.index.hardware import Codes, Floats, Hardware, Lists, as_float32
from dpr.index.kinds import Storage, core, inverted, storage
from dpr.index.part import Part

BLOCK_ROWS = 32_768
Coder = Callable[[Floats, str], tuple[Lists, Codes]]
"""From vectors (N, D), and their name in error messages, to lists (N,) int64 and codes (N, B) uint8."""


class FaissCoder:
    """Codes vectors with FAISS, on CPU threads."""

    def __init__(self, codebook: faiss.Index) -> None:
        self._codebook = codebook
        ivf = inverted(codebook)
        self._number_bytes = 0 if ivf is None else ivf.coarse_code_size()

    def __call__(self, vectors_ND: Floats, what: str) -> tuple[Lists, Codes]:
        """Return lists (N,) int64, zero for a kind without lists, and codes (N, B) uint8.

        Raises IndexBuildError for vectors of another width or that are not finite.
        """
        encoded_NB = self._codebook.sa_encode(as_float32(vectors_ND, self._codebook.d, what))
        # the number of the list stands before the code, little endian
        padded_N8 = np.zeros((len(encoded_NB), 8), np.uint8)
        padded_N8[:, : self._number_bytes] = encoded_NB[:, : self._number_bytes]
        return padded_N8.view("<i8")[:, 0], encoded_NB[:, self._number_bytes :]


def coder(codebook: faiss.Index, hardware: Hardware) -> Coder:
    """Return the coder of a codebook for this hardware."""
    device = hardware.device_for(codebook)
    if device is None:
        return FaissCoder(codebook)
    from dpr.index.torch_index import TorchCoder

    return TorchCoder(codebook, device)


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
    lists_N = np.empty(len(vectors_ND), np.int64)
    codes_NB = np.empty((len(vectors_ND), core(codebook).code_size), np.uint8)
    for start in range(0, len(vectors_ND), block_rows):
        block = slice(start, start + block_rows)
        lists_N[block], codes_NB[block] = code(vectors_ND[block], f"vectors of rows {start} and on")
    return _grouped(codebook, lists_N, codes_NB)


def _grouped(codebook: faiss.Index, lists_N: Lists, codes_NB: Codes) -> Part:
    """Return the part of coded vectors, list by list."""
    inner = core(codebook)
    lists = inner.nlist if isinstance(inner, faiss.IndexIVF) else 1
    order = np.argsort(lists_N, kind="stable")
    sizes_L = np.bincount(lists_N, minlength=lists).astype(np.uint32)
    return Part(sizes_L, order.astype(np.uint32), codes_NB[order])
