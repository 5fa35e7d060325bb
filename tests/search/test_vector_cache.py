"""Vectors that were read by range are the right ones, are read once, and stay within a bound."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dpr.formats.segment import Vectors
from dpr.index.truth import Ids
from dpr.search.vector_cache import ROW_BYTES, VectorCache

DIM = 4


def vectors_of(ids_N: Ids) -> Vectors:
    return np.stack([ids_N % 7, ids_N % 11, ids_N % 13, ids_N % 2], axis=1).astype(np.float16).reshape(-1, DIM)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.lists(st.integers(0, 60), max_size=40), max_size=20), st.integers(1, 40))
def test_any_ids_in_any_order(batches: list[list[int]], kept: int) -> None:
    cache, reads = VectorCache(), []

    def read(ids_N: Ids) -> Vectors:
        reads.append(ids_N.tolist())
        return vectors_of(ids_N)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("dpr.search.vector_cache.KEPT_BYTES", kept * (ROW_BYTES + 2 * DIM))
        for ids in batches:
            ids_N = np.array(ids, np.int64)
            np.testing.assert_array_equal(cache.take(ids_N, DIM, read), vectors_of(ids_N))
            assert len(cache._kept) <= kept
    for ids in reads:
        assert ids == sorted(set(ids))


def test_what_was_read_is_not_read_again() -> None:
    cache = VectorCache()
    first = np.array([5, 3, 5], np.int64)
    cache.take(first, DIM, vectors_of)

    def refuse(ids_N: Ids) -> Vectors:
        assert ids_N.tolist() == [9]
        return vectors_of(ids_N)

    np.testing.assert_array_equal(cache.take(np.array([3, 9]), DIM, refuse), vectors_of(np.array([3, 9])))
