"""Numbers of threads: limits are kept, and machines of any size make the same codebook and codes.

Learned transforms are the exception: OPQ and PCA sum products over all vectors, thread by thread.
"""

from concurrent.futures import ThreadPoolExecutor

import faiss
import numpy as np
import pytest
from threadpoolctl import ThreadpoolController

from dpr.index.choose import choose
from dpr.index.coding import build_part
from dpr.index.hardware import Hardware, bulk_threads, faiss_threads, serial_blas
from dpr.index.training import train
from dpr.recipe_index import IndexConfig


@pytest.mark.slow
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


def blas_threads() -> list[int]:
    return [library["num_threads"] for library in ThreadpoolController().select(threading_layer="pthreads").info()]


def test_matrix_products_use_one_thread_within_and_as_many_as_before_after() -> None:
    before = blas_threads()

    def within(_: int) -> list[int]:
        with serial_blas():
            return blas_threads()

    with ThreadPoolExecutor(8) as pool:
        assert {threads for found in pool.map(within, range(40)) for threads in found} <= {1}
    assert blas_threads() == before


def test_work_in_bulk_keeps_to_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda _: range(7))
    assert (bulk_threads(), Hardware().cpu_threads(), Hardware(threads=3).cpu_threads()) == (7, 7, 3)
    with faiss_threads(5):
        with faiss_threads(None):
            assert (bulk_threads(), Hardware().cpu_threads(), Hardware(threads=64).cpu_threads()) == (5, 5, 7)
        with faiss_threads(2):
            assert bulk_threads() == 2
        assert bulk_threads() == 5


def test_threads_are_those_there_are_and_are_given_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda _: range(3))
    before = faiss.omp_get_max_threads()
    for wanted, allowed in ((64, 3), (0, 1), (2, 2), (None, before)):
        with faiss_threads(wanted):
            assert faiss.omp_get_max_threads() == allowed
        assert faiss.omp_get_max_threads() == before
