"""The measurements that coding returns beside the codes, against numpy. Shapes: N vectors, D dimensions, L lists."""

import faiss
import numpy as np
import numpy.typing as npt
import pytest

from dpr.index.choose import choose
from dpr.index.coding import FaissCoder
from dpr.index.training import train
from dpr.recipe_index import IndexConfig


@pytest.mark.parametrize("factory", ["IVF8,PQ4x4", "IVF8_HNSW8,SQ8", "OPQ4,IVF8,PQ4x4", "PCA8,IVF8,Flat"])
def test_distances_are_those_from_the_centroid_of_the_list(factory: str, vectors_ND: npt.NDArray[np.float16]) -> None:
    codebook = train(vectors_ND.astype(np.float32), choose(IndexConfig(factory=factory), 1500, 16), seed=1)
    given_ND = 3 * vectors_ND.astype(np.float32)  # the length of a vector alone makes no difference
    given_ND[7] = 0
    coded = FaissCoder(codebook)(given_ND, "vectors")
    ivf = faiss.extract_index_ivf(codebook)
    coarse_LD = ivf.quantizer.reconstruct_n(0, 8)
    placed_ND = given_ND
    if isinstance(codebook, faiss.IndexPreTransform):
        placed_ND = faiss.downcast_VectorTransform(codebook.chain.at(0)).apply(given_ND)
    assert (coded.lists_N == ivf.quantizer.search(placed_ND, 1)[1][:, 0]).all()
    others = np.arange(1500) != 7
    squared_N = np.square(placed_ND - coarse_LD[coded.lists_N]).sum(axis=1)[others]
    expected = squared_N / np.square(placed_ND).sum(axis=1)[others]
    np.testing.assert_allclose(coded.distances_N[others], expected, rtol=1e-4)
    assert placed_ND[7].any() or coded.distances_N[7] > 1e6  # PCA moves the origin


@pytest.mark.parametrize("factory", ["Flat", "PQ4x4"])
def test_without_lists_there_is_no_distance(factory: str, vectors_ND: npt.NDArray[np.float16]) -> None:
    codebook = train(vectors_ND.astype(np.float32), choose(IndexConfig(factory=factory), 1500, 16), seed=1)
    assert not FaissCoder(codebook)(vectors_ND, "vectors").distances_N.any()
