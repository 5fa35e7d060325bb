"""Clustered vectors, cut into segments with dead rows, and the index that a single FAISS process makes of them."""

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import faiss
import numpy as np
import numpy.typing as npt
import pytest

from tests.disk import full_disk as _full_disk

DIM = 16
ROW_BITS = 32


@dataclass(frozen=True)
class Segment:
    """A segment, and what a test knows about it."""

    number: int
    vectors_ND: npt.NDArray[np.float16]
    dead: npt.NDArray[np.uint32]

    @property
    def live(self) -> npt.NDArray[np.int64]:
        return np.setdiff1d(np.arange(len(self.vectors_ND)), self.dead)

    @property
    def live_ids(self) -> npt.NDArray[np.int64]:
        return (self.number << ROW_BITS) + self.live


def clustered(rows: int, dim: int, seed: int) -> npt.NDArray[np.float16]:
    """Draw points around 40 centres of different weight, as passages lie around topics."""
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(40, dim))
    topics = np.minimum(rng.geometric(0.07, size=rows), 40) - 1
    return (centres[topics] + 0.4 * rng.normal(size=(rows, dim))).astype(np.float16)


def cut(vectors_ND: npt.NDArray[np.float16]) -> list[Segment]:
    """Cut uneven segments with gaps between their numbers: one whole, one tiny, one mostly dead, one all dead."""
    ends = [0, 500, 503, 1200, 1210, len(vectors_ND)]
    dead: list[npt.NDArray[np.int64]] = [
        np.arange(0),
        np.array([1]),
        np.flatnonzero(np.arange(697) % 3),
        np.arange(10),
        np.array([0, 289]),
    ]
    return [
        Segment(number, vectors_ND[first:last], rows.astype(np.uint32))
        for number, first, last, rows in zip([0, 3, 4, 7, 2**31 - 1], ends[:-1], ends[1:], dead, strict=True)
    ]


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    # FAISS sums in an order that depends on the number of threads
    before = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(1)
    yield
    faiss.omp_set_num_threads(before)


@pytest.fixture(scope="session", name="vectors_ND")
def passage_vectors() -> npt.NDArray[np.float16]:
    return clustered(1500, DIM, seed=0)


@pytest.fixture(scope="session", name="questions_QD")
def question_vectors() -> npt.NDArray[np.float32]:
    """Draw questions that lie near the passages, and in another distribution."""
    rng = np.random.default_rng(1)
    return (clustered(40, DIM, seed=0)[::-1] + 0.5 * rng.normal(size=(40, DIM))).astype(np.float32)


@pytest.fixture(scope="session")
def segments(vectors_ND: npt.NDArray[np.float16]) -> list[Segment]:
    return cut(vectors_ND)


@pytest.fixture
def full_disk() -> Callable[[], contextlib.AbstractContextManager[None]]:
    """Return a context in which no file may grow beyond 4 KB. Only within it: pytest writes its log to a file, too."""
    return _full_disk


@pytest.fixture(scope="session")
def segment_type() -> type[Segment]:
    """Return the type, for tests that make segments of their own."""
    return Segment
