"""FAISS's results do not depend on the number of threads, so machines of any size make the same codebook and codes.

Learned transforms are the exception: OPQ and PCA sum products over all vectors, thread by thread.
"""

import faiss
import numpy as np
import pytest

from dpr.index.coding import build_part
from dpr.index.choose import choose
from dpr.index.hardware import faiss_threads
from dpr.index.training import train
from dpr.recipe import IndexConfig


@pytest.mark.parametrize("factory", ["IVF64,PQ4", "IVF64,SQ8", "IVF64,PQ8x4fs", "IVF64,RaBitQ"])
def test_any_number_of_threads_gives_the_same_codebook_and_codes(factory: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda _: range(5))
    sample_ND = np.random.default_rng(0).normal(size=(2500, 32)).astype(np.float32)
    plan = choose(IndexConfig(factory=factory), 2500, 32)
    made = []
    for threads in (1, 2, 5):
        with faiss_threads(threads):
            assert faiss.omp_get_max_threads() == threads
            codebook = train(sample_ND, plan, seed=1)
            part = build_part(codebook, sample_ND.astype(np.float16))
        made.append((bytes(faiss.serialize_index(codebook)), part.rows_N.tobytes(), part.codes_NB.tobytes()))
    assert all(other == made[0] for other in made)


def test_threads_are_those_there_are_and_are_given_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda _: range(3))
    before = faiss.omp_get_max_threads()
    for asked, given in ((64, 3), (0, 1), (2, 2), (None, before)):
        with faiss_threads(asked):
            assert faiss.omp_get_max_threads() == given
        assert faiss.omp_get_max_threads() == before
