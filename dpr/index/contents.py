"""The contents of an index: its verification, the ids in it, and vectors decoded from it.

Shapes: L lists, N vectors, n sampled vectors, D dimensions, B bytes of a list number and a code.
"""

from collections.abc import Iterator
from pathlib import Path

import faiss
import numpy as np
import numpy.typing as npt

from dpr.errors import IntegrityError
from dpr.formats.records import Document
from dpr.index.kinds import core, inverted
from dpr.index.truth import Ids


class Verification(Document):
    """The contents of an index, counted and checked."""

    ntotal: int
    lists: int
    """Inverted lists; 0 for a kind without."""
    empty_lists: int
    largest_list: int
    imbalance: float
    """Vectors compared per visited list, relative to lists of equal size; 1.0 is even."""
    quantisation_error: float | None = None
    """Mean squared error of sampled vectors against the stored ones, over their mean squared norm; None: not known."""
    error_rows: int = 0
    """Vectors that the error was measured on."""


def verify_index(index: faiss.Index, expected_live_rows: int, file: Path | None = None) -> Verification:
    """Check that an index, mapped from `file` if given, holds each live row once; report the shape of its lists.

    Raises IntegrityError, with both numbers, if it holds another number of vectors or an id twice.
    """
    sizes_L = list_sizes(index)
    ids_N = stored_ids(index, file)
    if not index.ntotal == len(ids_N) == expected_live_rows:
        raise IntegrityError(
            f"the index counts {index.ntotal} vectors and holds {len(ids_N)} ids for {expected_live_rows} live rows; "
            "merge it again"
        )
    ids_N.sort()  # sorted in place, so that memory holds eight bytes a vector
    distinct = int((np.diff(ids_N) != 0).sum()) + (len(ids_N) > 0)
    if distinct != len(ids_N):
        raise IntegrityError(f"the index holds {len(ids_N)} ids of which {distinct} are distinct; merge it again")
    ivf = inverted(index)
    return Verification(
        ntotal=int(index.ntotal),
        lists=len(sizes_L),
        empty_lists=int((sizes_L == 0).sum()),
        largest_list=int(sizes_L.max(initial=0)),
        imbalance=float(ivf.invlists.imbalance_factor()) if ivf is not None and len(ids_N) else 1.0,
    )


def list_sizes(index: faiss.Index) -> npt.NDArray[np.int64]:
    """Return the number of vectors in each inverted list (L,) int64; empty for a kind without lists."""
    ivf = inverted(index)
    if ivf is None:
        return np.empty(0, np.int64)
    return np.array([ivf.invlists.list_size(number) for number in range(ivf.nlist)], np.int64)


def stored_ids(index: faiss.Index, file: Path | None = None) -> Ids:
    """Return all ids (N,) int64 of an index.

    If `file`, from which it was mapped, is given, ids are read from it: mapped pages count as memory of the process.
    """
    if isinstance(index, faiss.IndexIDMap):
        ids_N: Ids = faiss.vector_to_array(index.id_map)
        return ids_N
    ivf = inverted(index)
    if ivf is None:
        return np.arange(index.ntotal)
    sizes_L = list_sizes(index)
    starts_L = np.cumsum(sizes_L) - sizes_L
    ids_N = np.empty(sizes_L.sum(), np.int64)
    for number in np.flatnonzero(sizes_L).tolist():
        start, size = int(starts_L[number]), int(sizes_L[number])
        ids_N[start : start + size] = _ids_of(ivf, number, size, file)
    return ids_N


def iter_lists(index: faiss.Index) -> Iterator[tuple[int, Ids]]:
    """Yield number and ids (N,) of each inverted list that is not empty. The ids are a view: keep the index alive."""
    ivf, sizes_L = inverted(index), list_sizes(index)
    if ivf is not None:
        for number in np.flatnonzero(sizes_L).tolist():
            yield number, _ids_of(ivf, number, int(sizes_L[number]), None)


def _ids_of(ivf: faiss.IndexIVF, number: int, size: int, file: Path | None) -> Ids:
    """Return the ids of one list."""
    lists = faiss.downcast_InvertedLists(ivf.invlists)
    if file is not None and isinstance(lists, faiss.OnDiskInvertedLists):
        place = lists.lists.at(number)
        return np.fromfile(file, np.int64, size, offset=place.offset + place.capacity * int(ivf.code_size))
    ids: Ids = faiss.rev_swig_ptr(lists.get_ids(number), size)
    return ids


def decoded_sample(index: faiss.Index, size: int, seed: int) -> tuple[Ids, npt.NDArray[np.float32]] | None:
    """Return ids (n,) int64 and decoded vectors (n, D) float32 of up to `size` vectors, drawn uniformly.

    Returns None for a kind that cannot decode its vectors, or not safely (RaBitQ in blocks).
    """
    if isinstance(core(index), faiss.IndexIVFRaBitQFastScan):
        return None
    rows = int(index.ntotal)
    places_n = np.sort(np.random.default_rng(seed).choice(rows, min(size, rows), replace=False))
    try:
        if not isinstance(index, faiss.IndexIDMap):
            return _from_lists(index, places_n)
        inner = faiss.downcast_index(index.index)
        vectors = [inner.reconstruct(place) for place in places_n.tolist()]
        return stored_ids(index)[places_n], np.stack(vectors)
    except RuntimeError:
        return None


def _from_lists(index: faiss.Index, places_n: Ids) -> tuple[Ids, npt.NDArray[np.float32]]:
    """Return ids (n,) and decoded vectors (n, D) at places of the list order, the only access in a merged index."""
    ivf = core(index)
    ends_L = np.cumsum(list_sizes(index))
    lists_n = np.searchsorted(ends_L, places_n, side="right").astype("<u8")
    offsets_n = places_n - np.append(0, ends_L)[lists_n]
    number_bytes = int(ivf.coarse_code_size())
    encoded_nB = np.zeros((len(places_n), number_bytes + int(ivf.code_size)), np.uint8)
    encoded_nB[:, :number_bytes] = lists_n.view(np.uint8).reshape(-1, 8)[:, :number_bytes]
    ids_n = np.empty(len(places_n), np.int64)
    for row, (number, offset) in enumerate(zip(lists_n.tolist(), offsets_n.tolist(), strict=True)):
        ids_n[row] = ivf.invlists.get_single_id(number, offset)
        encoded_nB[row, number_bytes:] = _code_of(ivf, number, offset)
    return ids_n, index.sa_decode(encoded_nB)


def _code_of(ivf: faiss.IndexIVF, number: int, offset: int) -> npt.NDArray[np.uint8]:
    """Return the code at a place of one list."""
    lists = faiss.downcast_InvertedLists(ivf.invlists)
    code: npt.NDArray[np.uint8]
    if isinstance(lists, faiss.BlockInvertedLists):
        packer = ivf.get_CodePacker()
        per_block, block_bytes = int(packer.nvec), int(packer.block_size)
        blocks = faiss.rev_swig_ptr(lists.get_codes(number), (offset // per_block + 1) * block_bytes)
        code = packer.unpack_1(blocks[-block_bytes:].reshape(1, -1), offset % per_block)
    else:
        code = faiss.rev_swig_ptr(lists.get_single_code(number, offset), int(ivf.code_size)).copy()
    return code
