"""Building a part: one segment's vectors, coded with the codebook.

FAISS's standalone codec gives the same codes as adding to the index does, and leaves the codebook as it is.
Shapes: N rows, D dimensions, B bytes of a code, L lists.
"""

import faiss
import numpy as np
import numpy.typing as npt

from dpr.errors import IndexBuildError
from dpr.index.kinds import Storage, core, storage
from dpr.index.part import Part
from dpr.index.train import as_float32

BLOCK_ROWS = 32_768


def build_part(codebook: faiss.Index, vectors_ND: npt.NDArray[np.float16], block_rows: int = BLOCK_ROWS) -> Part:
    """The part of one segment: row i of `vectors_ND` (float16, may be a memory map) is row i of the segment.

    At most `block_rows` vectors are held in float32 at a time. Raises IndexBuildError for vectors of another width or
    that are not finite, and for a kind that cannot be built from parts.
    """
    if storage(codebook) is Storage.WHOLE:
        raise IndexBuildError(
            f"an index of kind {type(core(codebook)).__name__} cannot be built from parts; build it whole"
        )
    encoded_NB = np.empty((len(vectors_ND), codebook.sa_code_size()), np.uint8)
    for start in range(0, len(vectors_ND), block_rows):
        block = slice(start, start + block_rows)
        what = f"vectors of rows {start} and on"
        encoded_NB[block] = codebook.sa_encode(as_float32(vectors_ND[block], codebook.d, what))
    return grouped(codebook, encoded_NB)


def grouped(codebook: faiss.Index, encoded_NB: npt.NDArray[np.uint8]) -> Part:
    """The part of codes as FAISS's `sa_encode` gives them: list number (little endian), then code."""
    inner = core(codebook)
    if not isinstance(inner, faiss.IndexIVF):
        rows = len(encoded_NB)
        return Part(np.array([rows], np.uint32), np.arange(rows, dtype=np.uint32), encoded_NB)
    number_bytes = inner.coarse_code_size()
    padded_N8 = np.zeros((len(encoded_NB), 8), np.uint8)
    padded_N8[:, :number_bytes] = encoded_NB[:, :number_bytes]
    lists_N = padded_N8.view("<i8")[:, 0]
    order = np.argsort(lists_N, kind="stable")
    sizes_L = np.bincount(lists_N, minlength=inner.nlist).astype(np.uint32)
    return Part(sizes_L, order.astype(np.uint32), encoded_NB[order, number_bytes:])
