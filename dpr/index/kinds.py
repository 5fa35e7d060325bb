"""The structure of a FAISS index. It may be wrapped: transforms before it (`OPQ…`, `PCA…`), an id map around it.

Shapes: N vectors, D dimensions.
"""

import enum
import re

import faiss
import numpy as np
import numpy.typing as npt

EMPTY_ARRAY_LISTS_BYTES = 32
BLOCK_LISTS_HEADER_BYTES = 36
EMPTY_BLOCK_LIST_BYTES = 16
ID_BYTES = 8
"""Bytes of a vector's id, in every kind of index."""
FAST_BITS, FAST_BLOCK_ROWS = 4, 32
"""Bits of PQ codes that FastScan searches: a table of 16 products fits a register, so 32 vectors are looked up at a
time."""


class Storage(enum.Enum):
    """How an index keeps its vectors, which decides how it is built."""

    ARRAY_LISTS = "inverted lists of codes"
    BLOCK_LISTS = "inverted lists of codes packed in blocks (FastScan)"
    CODES = "one table of codes"
    WHOLE = "a structure over all vectors"
    """A graph, a layout of its own: cannot be merged from parts."""


def core(index: faiss.Index) -> faiss.Index:
    """Return the index below its transforms. It is a view: keep `index` alive while using it."""
    while isinstance(index, faiss.IndexPreTransform):
        index = faiss.downcast_index(index.index)
    return index


def searched(index: faiss.Index) -> faiss.Index:
    """Return the index that compares vectors, below id map and transforms. It is a view, as `core` is."""
    if isinstance(index, (faiss.IndexPreTransform, faiss.IndexIDMap)):
        return searched(faiss.downcast_index(index.index))
    return index


def inverted(index: faiss.Index) -> faiss.IndexIVF | None:
    """Return the index with inverted lists that does the searching in `index`, or None. It is a view, as `core` is."""
    found = searched(index)
    return found if isinstance(found, faiss.IndexIVF) else None


def list_count(index: faiss.Index) -> int:
    """Return the number of inverted lists; 0 for a kind without."""
    ivf = inverted(index)
    return 0 if ivf is None else int(ivf.nlist)


def code_centroids(index: faiss.Index) -> int:
    """Return how many centroids a product or additive quantiser in the index learns per subspace or step; 0 without."""
    coded = inverted(index) or core(index)
    if hasattr(coded, "storage"):  # a graph over coded vectors
        coded = faiss.downcast_index(coded.storage)
    if hasattr(coded, "pq"):
        return int(coded.pq.ksub)
    if hasattr(coded, "aq"):
        return 1 << int(faiss.vector_to_array(coded.aq.nbits).max())
    return 0


def packed_when_opened(index: faiss.Index) -> bool:
    """Return whether `dpr.index.shards` turns the codes of `index` into FastScan's blocks to search them."""
    return type(index) is faiss.IndexIVFPQ and index.pq.nbits == FAST_BITS


def storage(codebook: faiss.Index) -> Storage:
    """Return how `codebook`, an empty index, will keep its vectors."""
    inner = core(codebook)
    if isinstance(inner, faiss.IndexIVF):
        lists = type(faiss.downcast_InvertedLists(inner.invlists))
        if lists is faiss.ArrayInvertedLists and _ends_with(codebook, b"ilar", EMPTY_ARRAY_LISTS_BYTES):
            return Storage.ARRAY_LISTS
        tail_bytes = BLOCK_LISTS_HEADER_BYTES + EMPTY_BLOCK_LIST_BYTES * inner.nlist
        if lists is faiss.BlockInvertedLists and _ends_with(codebook, b"ilbl", tail_bytes):
            return Storage.BLOCK_LISTS
    elif isinstance(inner, faiss.IndexFlatCodes) and not isinstance(inner, faiss.IndexFlatPanorama):
        return Storage.CODES
    return Storage.WHOLE


def _ends_with(codebook: faiss.Index, lists: bytes, tail_bytes: int) -> bool:
    # a merge writes the inverted lists after everything else, so they have to be the last part of the file
    return bytes(faiss.serialize_index(codebook)[-tail_bytes:][: len(lists)]) == lists


def copy_index(index: faiss.Index) -> faiss.Index:
    """Return an independent copy. FAISS's own cloning refuses some kinds that it can write and read."""
    return faiss.deserialize_index(faiss.serialize_index(index))


def transformed(index: faiss.Index, vectors_ND: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Return vectors (N, D) after the transforms of an index, as its inverted lists take them."""
    vectors_ND = np.ascontiguousarray(vectors_ND, np.float32)
    if isinstance(index, faiss.IndexPreTransform):
        for place in range(index.chain.size()):
            vectors_ND = faiss.downcast_VectorTransform(index.chain.at(place)).apply(vectors_ND)
    return vectors_ND


def encode(
    ivf: faiss.IndexIVF, vectors_ND: npt.NDArray[np.float32], lists_N: npt.NDArray[np.int64]
) -> npt.NDArray[np.uint8]:
    """Return the codes (N, B) of vectors whose lists are known."""
    codes_NB = np.zeros((len(vectors_ND), ivf.code_size), np.uint8)
    pointers = [faiss.swig_ptr(array) for array in (vectors_ND, lists_N, codes_NB)]
    ivf.encode_vectors(len(vectors_ND), *pointers, False)
    return codes_NB


def set_ntotal(index: faiss.Index, ntotal: int) -> None:
    """Set the number of vectors of an index and of all it wraps, after they were put into the core directly."""
    index.ntotal = ntotal
    if isinstance(index, (faiss.IndexPreTransform, faiss.IndexIDMap)):
        set_ntotal(faiss.downcast_index(index.index), ntotal)


def reason(error: RuntimeError) -> str:
    """Return the message of an error of FAISS, without the C++ function, file and line."""
    message = re.split(r" at /\S+:\d+: ", " ".join(str(error).split()))[-1]
    condition = re.match(r"Error: '(.*?)' failed:? ?", message)
    if condition:
        message = message[condition.end() :] or condition[1]
    return message.rstrip(".")
