"""RangedFile against a file in memory: whatever is sought and read, both give the same."""

import io
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dpr.errors import MissingObjectError, StoreError
from dpr.store import LocalStore
from dpr.store.ranged import RangedFile

STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("seek"), st.integers(0, 1200), st.just(io.SEEK_SET)),
        st.tuples(st.just("seek"), st.integers(-50, 50), st.just(io.SEEK_END)),
        st.tuples(st.just("read"), st.integers(-1, 400), st.just(0)),
    ),
    max_size=12,
)


class MemoryStore(LocalStore):
    """Hold one object; remote as far as one can see. Notes the ranges that are read."""

    def __init__(self, data: bytes) -> None:
        super().__init__("/nowhere")
        self.data = data
        self.ranges: list[tuple[int, int]] = []

    def size(self, name: str) -> int:
        if name != "a":
            raise MissingObjectError(name)
        return len(self.data)

    def get_range(self, name: str, start: int, length: int) -> bytes:  # noqa: ARG002
        self.ranges.append((start, length))
        return self.data[start : start + length]

    def local_path(self, name: str) -> Path | None:  # noqa: ARG002
        return None


@given(st.binary(max_size=1000), STEPS, st.booleans(), st.integers(0, 500))
def test_it_reads_as_a_file_does(data: bytes, steps: list[tuple[str, int, int]], buffered: bool, tail: int) -> None:
    raw = RangedFile(MemoryStore(data), "a", len(data), data[max(0, len(data) - tail) :])
    file, model = raw.buffered() if buffered else raw, io.BytesIO(data)
    for what, number, whence in steps:
        if what == "seek":
            number = max(number, -len(data)) if whence == io.SEEK_END else number
            assert file.seek(number, whence) == model.seek(number, whence)
        else:
            assert file.read(number) == model.read(number)
        assert file.tell() == model.tell()


def test_small_reads_become_one_range_with_a_buffer() -> None:
    store = MemoryStore(bytes(3 << 20))
    with RangedFile(store, "a", 3 << 20).buffered() as file:
        for _ in range(1000):
            file.read(100)
    assert store.ranges == [(0, 1 << 18)]


def test_a_large_read_is_one_range() -> None:
    store = MemoryStore(bytes(6 << 20))
    with RangedFile(store, "a", 6 << 20).buffered() as file:
        file.seek(1000)
        assert len(file.read(5_000_001)) == 5_000_001
    assert store.ranges == [(1000, 5_000_001)]


def test_a_tail_that_is_known_is_not_fetched() -> None:
    store = MemoryStore(bytes(range(100)))
    file = RangedFile(store, "a", 100, store.data[60:])
    file.seek(60)
    assert file.read() == store.data[60:]
    file.seek(50)
    assert file.read(20) == store.data[50:70]
    assert store.ranges == [(50, 50)]


def test_an_object_that_became_shorter_is_an_error() -> None:
    store = MemoryStore(b"12345")
    with pytest.raises(StoreError, match="object a ends before its 9 bytes"):
        RangedFile(store, "a", 9).read()
