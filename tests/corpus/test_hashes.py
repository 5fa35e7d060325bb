"""Arrays of hashes, against plain sets and dictionaries."""

from collections.abc import Iterator

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dpr.corpus import hashes as module
from dpr.corpus.hashes import KnownKeys, bytes_of, first_of_each, is_in, places
from dpr.formats.segment import HASH, join_hashes

HALVES = st.sampled_from([bytes(8), b"\xff" * 8, b"\0" * 7 + b"\1", b"\1" + b"\0" * 7]) | st.binary(
    min_size=8, max_size=8
)
"""Few values, so that whole hashes and halves of hashes are often the same."""
HASHES = st.lists(st.tuples(HALVES, HALVES).map(b"".join), max_size=30)
OFFSETS = st.integers(0, 3)


@pytest.fixture(scope="module", params=[module.PIECE_ROWS, 3], autouse=True)
def piece_rows(request: pytest.FixtureRequest) -> Iterator[None]:
    """Let one thread do all, or let several take a few hashes each."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "PIECE_ROWS", request.param)
        yield


def array(hashes: list[bytes], offset: int = 0) -> pa.FixedSizeBinaryArray:
    """Return an array that begins `offset` hashes after its buffer does."""
    return pa.array([b"\xaa" * 16] * offset + hashes, HASH).slice(offset)


@given(HASHES, HASHES, OFFSETS)
def test_known_keys_are_a_set(known: list[bytes], keys: list[bytes], offset: int) -> None:
    keys = keys + known[:5]
    known_keys = KnownKeys(array(known, offset))
    assert len(known_keys) == len(known)
    assert known_keys.contains(array(keys, offset)).tolist() == [key in set(known) for key in keys]


@given(HASHES, OFFSETS)
def test_the_first_of_each_hash(hashes: list[bytes], offset: int) -> None:
    expected = [hash_ not in hashes[:row] for row, hash_ in enumerate(hashes)]
    assert first_of_each(array(hashes, offset)).tolist() == expected


@given(HASHES, HASHES, OFFSETS)
def test_places_are_those_of_a_dictionary(hashes: list[bytes], among: list[bytes], offset: int) -> None:
    hashes = hashes + among[-5:]
    first_rows: dict[bytes, int] = {}
    for row, hash_ in enumerate(among):
        first_rows.setdefault(hash_, row)
    assert places(array(hashes, offset), array(among, offset)).tolist() == [first_rows.get(one, -1) for one in hashes]
    assert is_in(array(hashes, offset), array(among, offset)).tolist() == [one in first_rows for one in hashes]


@given(st.lists(HASHES, max_size=4), st.sampled_from([HASH, pa.binary()]), OFFSETS)
def test_chunks_become_one_array_with_the_bytes_of_all(
    chunks: list[list[bytes]], stored_type: pa.DataType, offset: int
) -> None:
    column = pa.chunked_array([array(chunk, offset).cast(stored_type) for chunk in chunks], stored_type)
    joined = join_hashes(column.chunks)
    hashes = [hash_ for chunk in chunks for hash_ in chunk]
    assert joined.type == HASH
    assert joined.to_pylist() == hashes
    assert bytes(bytes_of(joined)) == b"".join(hashes)
    assert bytes(bytes_of(joined[1:])) == b"".join(hashes[1:])
