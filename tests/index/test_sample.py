"""The training sample is uniform over all live rows, whatever segment they are in."""

import numpy as np
import pytest

from dpr.index.sample import HASHED_ROWS, distinct_rows, sample_rows

COUNTS = [5, 0, 1, 40, 14]


def test_every_row_and_every_pair_is_equally_likely() -> None:
    draws, size, total = 6_000, 12, sum(COUNTS)
    starts = np.cumsum(COUNTS) - COUNTS
    together = np.zeros((total, total))
    for seed in range(draws):
        drawn = np.concatenate(
            [start + ranks for start, ranks in zip(starts, sample_rows(COUNTS, size, seed), strict=True)]
        )
        together[np.ix_(drawn, drawn)] += 1
    singles, pairs = np.diag(together), together[np.triu_indices(total, 1)]
    for counts, share in ((singles, size / total), (pairs, size * (size - 1) / (total * (total - 1)))):
        expected = draws * share
        chi_square = np.square(counts - expected).sum() / (expected * (1 - share))
        # mean n; pairs of one draw share rows, which about doubles the sqrt(2n) by which independent counts would vary
        assert abs(chi_square - len(counts)) < 8 * np.sqrt(2 * len(counts))


@pytest.mark.parametrize("size", [1, 12, 59, 60, 1000])
def test_ranks_are_distinct_sorted_and_within_their_segment(size: int) -> None:
    pieces = sample_rows(COUNTS, size, seed=3)
    assert sum(len(ranks) for ranks in pieces) == min(size, sum(COUNTS))
    for ranks, count in zip(pieces, COUNTS, strict=True):
        assert (np.diff(ranks) > 0).all()
        assert ((ranks >= 0) & (ranks < count)).all()


def test_the_seed_decides() -> None:
    first, again, other = (np.concatenate(sample_rows([1000, 1000], 50, seed)) for seed in (1, 1, 2))
    assert (first == again).all()
    assert not (first == other).all()


def test_no_segments() -> None:
    assert sample_rows([], 10, seed=0) == []


@pytest.mark.parametrize("dim", [1, 3, 4, 384])
@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_distinct_rows_are_the_first_of_each_group_of_equal_vectors(dim: int, dtype: type) -> None:
    rng = np.random.default_rng(dim)
    vectors_ND = rng.standard_normal((300, dim)).astype(dtype)[rng.integers(0, 300, HASHED_ROWS + 50)]
    first = np.sort(np.unique(vectors_ND, axis=0, return_index=True)[1])
    np.testing.assert_array_equal(distinct_rows(vectors_ND), first)


def test_of_no_vectors_none_is_distinct() -> None:
    assert len(distinct_rows(np.empty((0, 8), np.float16))) == 0
