"""Writing the inverted lists of a FAISS index file range by range, so that the index may be larger than memory.

A FAISS file with inverted lists is a head (sizes, centroids, quantisers), and then the lists in order. FAISS itself
makes the head: the codebook is serialised, and its own empty lists are cut off the end.

Shapes: L lists, N vectors, B bytes of a code.
"""

from abc import ABC, abstractmethod

import faiss
import numpy as np
import numpy.typing as npt

from dpr.index.hardware import Codes
from dpr.index.kinds import (
    BLOCK_LISTS_HEADER_BYTES,
    EMPTY_ARRAY_LISTS_BYTES,
    EMPTY_BLOCK_LIST_BYTES,
    FAST_BLOCK_ROWS,
    ID_BYTES,
    Storage,
    copy_index,
    core,
    set_ntotal,
    storage,
)
from dpr.index.truth import Ids

Sizes = npt.NDArray[np.int64]
FIRST_HALF = np.array([0, 8, 1, 9, 2, 10, 3, 11, 4, 12, 5, 13, 6, 14, 7, 15])
"""The order of 16 vectors in a block: the half of an AVX register that holds one alternates (`perm0` in FAISS)."""


class ListWriter(ABC):
    """Makes the bytes of an index file that holds lists of given sizes."""

    def __init__(self, codebook: faiss.Index) -> None:
        self._codebook = codebook
        self.code_bytes = int(core(codebook).code_size)
        self.lists = int(core(codebook).nlist)

    @abstractmethod
    def head(self, sizes_L: Sizes) -> bytes:
        """Return everything before the first list."""

    @abstractmethod
    def bytes_of(self, sizes_L: Sizes) -> Sizes:
        """Return the bytes that each list takes in the file."""

    @abstractmethod
    def encode(self, sizes_L: Sizes, codes_NB: Codes, ids_N: Ids) -> Codes:
        """Return the bytes of a run of lists, whose vectors are given list by list."""

    def _head_without_lists(self, sizes_L: Sizes, tail_bytes: int) -> bytes:
        """Return the codebook as FAISS writes it, without its own lists, which take the last `tail_bytes`."""
        shell = copy_index(self._codebook)
        set_ntotal(shell, int(sizes_L.sum()))
        serialized = faiss.serialize_index(shell)
        del shell  # centroids may take hundreds of megabytes: two copies at once are enough
        return bytes(serialized[:-tail_bytes])


class ArrayListWriter(ListWriter):
    """Writes plain lists: `ilar`, number of lists, code size, `full`, all sizes; then codes and ids of each list."""

    def head(self, sizes_L: Sizes) -> bytes:
        """Return everything before the first list."""
        numbers = np.array([self.lists, self.code_bytes], "<u8").tobytes()
        sizes = np.array([self.lists], "<u8").tobytes() + sizes_L.astype("<u8").tobytes()
        return self._head_without_lists(sizes_L, EMPTY_ARRAY_LISTS_BYTES) + b"ilar" + numbers + b"full" + sizes

    def bytes_of(self, sizes_L: Sizes) -> Sizes:
        """Return the bytes that each list takes in the file."""
        return sizes_L * (self.code_bytes + ID_BYTES)

    def encode(self, sizes_L: Sizes, codes_NB: Codes, ids_N: Ids) -> Codes:
        """Return the bytes of a run of lists, whose vectors are given list by list."""
        ends = np.cumsum(sizes_L)
        pieces = [
            array[end - size : end].reshape(-1).view(np.uint8)
            for size, end in zip(sizes_L.tolist(), ends.tolist(), strict=True)
            for array in (codes_NB, ids_N)
        ]
        return np.concatenate(pieces)


class BlockListWriter(ListWriter):
    """Writes FastScan's lists: `ilbl`, block geometry; then ids and packed codes of each list, after their lengths."""

    def __init__(self, codebook: faiss.Index) -> None:
        super().__init__(codebook)
        self._packer = core(codebook).get_CodePacker()

    def head(self, sizes_L: Sizes) -> bytes:
        """Return everything before the first list."""
        tail_bytes = BLOCK_LISTS_HEADER_BYTES + EMPTY_BLOCK_LIST_BYTES * self.lists
        geometry = bytes(faiss.serialize_index(self._codebook)[-tail_bytes:][:BLOCK_LISTS_HEADER_BYTES])
        return self._head_without_lists(sizes_L, tail_bytes) + geometry

    def bytes_of(self, sizes_L: Sizes) -> Sizes:
        """Return the bytes that each list takes in the file."""
        return EMPTY_BLOCK_LIST_BYTES + ID_BYTES * sizes_L + self._blocks(sizes_L) * int(self._packer.block_size)

    def encode(self, sizes_L: Sizes, codes_NB: Codes, ids_N: Ids) -> Codes:
        """Return the bytes of a run of lists, whose vectors are given list by list."""
        pieces = []
        first = 0
        for size in sizes_L.tolist():
            packed = self._pack(codes_NB[first : first + size])
            pieces += [np.array([size], "<u8"), ids_N[first : first + size], np.array([len(packed)], "<u8"), packed]
            first += size
        return np.concatenate([piece.view(np.uint8) for piece in pieces])

    def _blocks(self, sizes: Sizes) -> Sizes:
        """Return the blocks that lists of such sizes take."""
        return -(-sizes // int(self._packer.nvec))

    def _pack(self, codes_NB: Codes) -> Codes:
        """Return the blocks of one list."""
        per_block, block_bytes = int(self._packer.nvec), int(self._packer.block_size)
        blocks = -(-len(codes_NB) // per_block)
        padded_NB = np.zeros((blocks * per_block, self.code_bytes), np.uint8)
        padded_NB[: len(codes_NB)] = codes_NB
        if isinstance(core(self._codebook), faiss.IndexIVFPQFastScan):
            return pack_blocks(padded_NB, per_block)
        packed = np.zeros((blocks, block_bytes), np.uint8)
        for block, source in enumerate(np.split(padded_NB, blocks) if blocks else []):
            self._packer.pack_all(faiss.swig_ptr(source), faiss.swig_ptr(packed[block]))
        return packed.reshape(-1)


def pack_blocks(codes_NB: Codes, per_block: int) -> Codes:
    """Return 4-bit PQ codes in FastScan's order, as bytes (N * B,); N is a multiple of `per_block`, and that one of 32.

    FAISS's own `CodePackerPQ4` packs them one by one, which made merging four times as slow, and packs blocks of 64 in
    another order than the index that searches them. In each group of 32 vectors, a byte of a block holds the codes of
    two.
    """
    code_bytes = codes_NB.shape[1]
    groups = codes_NB.reshape(-1, per_block // FAST_BLOCK_ROWS, FAST_BLOCK_ROWS, code_bytes)
    first, second = groups[:, :, FIRST_HALF], groups[:, :, FIRST_HALF + FAST_BLOCK_ROWS // 2]
    packed = np.empty_like(groups)
    np.bitwise_or(first & 0x0F, second << 4, out=packed[:, :, : FAST_BLOCK_ROWS // 2])
    np.bitwise_or(first >> 4, second & 0xF0, out=packed[:, :, FAST_BLOCK_ROWS // 2 :])
    return np.ascontiguousarray(packed.transpose(0, 3, 1, 2)).reshape(-1)


def list_writer(codebook: faiss.Index) -> ListWriter:
    """Return the writer for the kind of lists that `codebook` has."""
    return BlockListWriter(codebook) if storage(codebook) is Storage.BLOCK_LISTS else ArrayListWriter(codebook)
