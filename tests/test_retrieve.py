"""Stored vectors by index id."""

import numpy as np
import pyarrow as pa

from dpr.search.retrieve import ROW_BITS, SegmentSet
from dpr.formats.segment import MappedSegment


def test_vectors_come_in_the_order_of_the_ids_asked_for() -> None:
    rng = np.random.default_rng(0)
    stored = {number: rng.standard_normal((50, 8)).astype(np.float16) for number in (0, 3, 70_000)}
    segments = {number: MappedSegment(vectors_ND, pa.table({})) for number, vectors_ND in stored.items()}
    numbers, rows = rng.choice(list(stored), 200), rng.integers(0, 50, 200)
    found_ND = SegmentSet(segments, {}, 8).vectors((numbers << ROW_BITS) | rows)
    np.testing.assert_array_equal(found_ND, [stored[n][r] for n, r in zip(numbers, rows, strict=True)])
    assert SegmentSet(segments, {}, 8).vectors(np.empty(0, np.int64)).shape == (0, 8)
