"""Lists that are written range by range hold the bytes that FAISS itself would write."""

import faiss
import numpy as np
import pytest

from dpr.index.invlists import pack_blocks


@pytest.mark.parametrize("factory", ["IVF1,PQ16x4fs", "IVF1,PQ16x4fs_64", "IVF1,PQ7x4fs", "IVF1,PQ16x4fsr"])
def test_packed_codes_are_those_of_an_index_of_faiss(factory: str) -> None:
    dim = 56 if "PQ7" in factory else 64
    vectors_ND = np.random.default_rng(0).standard_normal((640, dim)).astype(np.float32)
    index = faiss.index_factory(dim, factory)
    index.train(vectors_ND)
    index.add(vectors_ND)
    packer = index.get_CodePacker()
    block_bytes = len(vectors_ND) // packer.nvec * packer.block_size
    held = faiss.rev_swig_ptr(faiss.downcast_InvertedLists(index.invlists).get_codes(0), block_bytes)
    codes_NB = index.sa_encode(vectors_ND)[:, -index.code_size :]  # before them is the number of the list
    np.testing.assert_array_equal(pack_blocks(np.ascontiguousarray(codes_NB), packer.nvec), held.reshape(-1))
