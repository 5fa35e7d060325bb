"""The rule that says which segments are copied, tried with sizes alone over many nights."""

from collections import Counter
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dpr.corpus.compaction import segments_to_copy


def tier(live: int, segment_rows: int) -> int | None:
    """Return the tier, computed in another way than the rule does; None for a segment that is not small."""
    number = None
    bound = Fraction(segment_rows, 4)
    while live < bound:
        number, bound = (number or 0) + 1, bound / 8
    return number


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(1, 400), min_size=20, max_size=150), st.sampled_from([64, 1000, 50_000]))
def test_many_nights_leave_few_segments_and_copy_each_row_a_bounded_number_of_times(nights, segment_rows) -> None:
    segments: list[list[int]] = []  # for each row of each segment, how often it was copied
    max_copies = tier(1, segment_rows)
    for added in nights:
        live = np.array([len(rows) for rows in segments], np.int64)
        copied = segments_to_copy(live, live, segment_rows, 0.5)
        moved = [copies + 1 for rows, copy in zip(segments, copied, strict=True) if copy for copies in rows]
        segments = [rows for rows, copy in zip(segments, copied, strict=True) if not copy]
        tiers = Counter(tier(len(rows), segment_rows) for rows in segments)
        del tiers[None]
        assert all(count < 8 for count in tiers.values())
        for rows in (moved, [0] * added):
            if rows:
                segments += [piece.tolist() for piece in np.array_split(rows, -(-len(rows) // segment_rows))]
    assert sum(map(len, segments)) == sum(nights)
    assert max(copies for rows in segments for copies in rows) <= max_copies
    large = sum(4 * len(rows) >= segment_rows for rows in segments)
    assert large <= 4 * sum(nights) / segment_rows


@pytest.mark.parametrize(
    ("rows", "live", "copied"),
    [
        ([], [], []),
        ([100, 100, 100], [100, 50, 49], [False, False, True]),  # mostly dead
        ([100], [0], [True]),
        ([10] * 7, [10] * 7, [False] * 7),
        ([10] * 8, [10] * 8, [True] * 8),
        ([10] * 7 + [1], [10] * 7 + [1], [False] * 8),  # of another tier
        ([25] * 8, [25] * 8, [False] * 8),  # a quarter of 100 is not small
        ([30] * 8, [24] * 8, [True] * 8),  # live rows count
    ],
)
def test_what_is_copied(rows: list[int], live: list[int], copied: list[bool]) -> None:
    assert segments_to_copy(np.array(rows, np.int64), np.array(live, np.int64), 100, 0.5).tolist() == copied


def test_empty_segments_go_whatever_share_the_recipe_names() -> None:
    assert segments_to_copy(np.array([5, 5]), np.array([0, 1]), 100, 0.0).tolist() == [True, False]
