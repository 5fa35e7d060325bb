"""Pieces of local files are those that Python reads one at a time."""

import os
import resource
from pathlib import Path

import numpy as np
import pytest

from dpr.errors import IntegrityError, StoreError
from dpr.store import small_reads
from dpr.store.small_reads import MAX_SHARE, SmallReads


@pytest.fixture
def paths(tmp_path: Path) -> list[Path]:
    made = [tmp_path / str(number) for number in range(3)]
    for number, path in enumerate(made):
        path.write_bytes(np.random.default_rng(number).bytes(5_000 + number))
    return made


def test_pieces_come_from_any_file_in_any_order_also_after_it_was_removed(paths: list[Path]) -> None:
    contents = [path.read_bytes() for path in paths]
    reads = SmallReads.open(paths)
    assert reads is not None
    for path in paths:
        path.unlink()
    rng = np.random.default_rng(9)
    files_N, offsets_N = rng.integers(0, 3, 500), rng.integers(0, 5_000 - 77, 500)
    found_NB = reads.pieces(files_N, offsets_N, 77)
    wanted = [contents[file][offset : offset + 77] for file, offset in zip(files_N, offsets_N, strict=True)]
    assert [row.tobytes() for row in found_NB] == wanted
    assert reads.pieces(files_N[:0], offsets_N[:0], 77).shape == (0, 77)


def test_a_file_that_ends_within_a_piece_is_named(paths: list[Path]) -> None:
    reads = SmallReads.open(paths)
    assert reads is not None
    os.truncate(paths[1], 4_900)
    with pytest.raises(IntegrityError, match=f"^file {paths[1]} ends before byte 4,950, which it had when"):
        reads.pieces(np.array([0, 1]), np.array([0, 4_850]), 100)
    assert reads.pieces(np.array([1]), np.array([4_800]), 100).shape == (1, 100)


def test_a_file_that_cannot_be_read_is_one_sentence(tmp_path: Path) -> None:
    reads = SmallReads.open([tmp_path])  # a folder can be opened, and not read
    assert reads is not None
    with pytest.raises(StoreError, match=r"^a file that holds vectors cannot be read \(Is a directory\)$"):
        reads.pieces(np.array([0]), np.array([0]), 100)


def test_no_file_stays_open(paths: list[Path]) -> None:
    open_before = os.listdir("/proc/self/fd")
    reads = SmallReads.open(paths)
    assert len(os.listdir("/proc/self/fd")) == len(open_before) + 3
    del reads
    assert SmallReads.open([*paths, paths[0].with_name("gone")]) is None
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    assert SmallReads.open([paths[0]] * (int(limit * MAX_SHARE) + 1)) is None
    assert len(os.listdir("/proc/self/fd")) == len(open_before)


def test_all_together_open_a_share_of_the_files_that_the_process_may_have(
    paths: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    monkeypatch.setattr(small_reads, "MAX_SHARE", (small_reads._open_files + 4) / limit)
    first = SmallReads.open(paths)
    assert first is not None
    assert SmallReads.open(paths[:2]) is None
    assert SmallReads.open(paths[:1]) is not None
    del first
    assert SmallReads.open(paths) is not None


def test_a_piece_is_read_or_the_advice_given(paths: list[Path]) -> None:
    reads = SmallReads.open(paths, "remove it")
    assert reads is not None
    assert reads.piece(2, 40, 60) == paths[2].read_bytes()[40:100]
    assert reads.piece(2, 5_000, 0) == b""
    os.truncate(paths[2], 99)
    with pytest.raises(IntegrityError, match=f"^file {paths[2]} ends before byte 100, which it had .*; remove it$"):
        reads.piece(2, 40, 60)
