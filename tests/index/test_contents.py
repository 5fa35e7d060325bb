"""What an index is verified for."""

import faiss
import numpy as np
import numpy.typing as npt
import pytest

from dpr.errors import IntegrityError
from dpr.index.choose import choose
from dpr.index.contents import verify_index
from dpr.index.training import train
from dpr.recipe_index import IndexConfig


def filled(factory: str, vectors_ND: npt.NDArray[np.float16], ids_N: npt.NDArray[np.int64]) -> faiss.Index:
    sample_ND = vectors_ND.astype(np.float32)
    index = train(sample_ND, choose(IndexConfig(factory=factory), 1500, 16), seed=1)
    index = index if "IVF" in factory else faiss.IndexIDMap(index)
    index.add_with_ids(sample_ND, ids_N)
    return index


@pytest.mark.slow
@pytest.mark.parametrize("factory", ["IVF8,Flat", "OPQ4,IVF8,PQ4x4fs"])
def test_the_shape_of_the_lists_is_reported(factory: str, vectors_ND: npt.NDArray[np.float16]) -> None:
    index = filled(factory, vectors_ND, np.arange(1500) << 20)
    report = verify_index(index, 1500)
    lists = faiss.extract_index_ivf(index).invlists
    sizes = np.array([lists.list_size(number) for number in range(8)])
    assert (report.ntotal, report.lists) == (1500, 8)
    assert (report.empty_lists, report.largest_list) == ((sizes == 0).sum(), sizes.max())
    assert report.imbalance == pytest.approx(8 * np.square(sizes / 1500).sum())


def test_a_kind_without_lists(vectors_ND: npt.NDArray[np.float16]) -> None:
    report = verify_index(filled("Flat", vectors_ND, np.arange(1500)), 1500)
    assert (report.ntotal, report.lists, report.imbalance) == (1500, 0, 1.0)


@pytest.mark.parametrize("factory", ["IVF8,Flat", "Flat"])
def test_another_count_and_repeated_ids_are_refused(factory: str, vectors_ND: npt.NDArray[np.float16]) -> None:
    with pytest.raises(IntegrityError, match="1500 vectors and holds 1500 ids for 1499 live rows"):
        verify_index(filled(factory, vectors_ND, np.arange(1500)), 1499)
    with pytest.raises(IntegrityError, match="1500 ids of which 1499 are distinct"):
        verify_index(filled(factory, vectors_ND, np.maximum(np.arange(1500), 1)), 1500)
