"""Pages of mapped files: what was read stays right, and does not stay in this process."""

from pathlib import Path

import numpy as np
import pytest

from dpr.store.mapped_files import keeping_more, map_file, touch

SIZE_BYTES = 32 * 2**20


def rss_of(path: Path) -> int:
    """Return the sum of the fields Rss of all maps of a file."""
    found, is_ours = 0, False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if line[0] in "0123456789abcdef" and "-" in line.split()[0]:
            is_ours = line.endswith(str(path))
        elif is_ours and line.startswith("Rss:"):
            found += int(line.split()[1]) * 1024
    return found


def test_pages_are_given_back_after_so_much_was_touched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dpr.store.mapped_files.KEPT_BYTES", SIZE_BYTES)
    monkeypatch.setattr("dpr.store.mapped_files._touched_bytes", 0)
    path = tmp_path / "numbers"
    expected = np.random.default_rng(0).integers(0, 256, SIZE_BYTES, np.uint8)
    expected.tofile(path)
    mapped = map_file(path)
    np.testing.assert_array_equal(mapped, expected)
    assert rss_of(path) == SIZE_BYTES
    touch(SIZE_BYTES // 2)
    assert rss_of(path) == SIZE_BYTES
    touch(SIZE_BYTES // 2)
    assert rss_of(path) == 0
    np.testing.assert_array_equal(mapped, expected)


def test_pages_that_every_question_needs_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dpr.store.mapped_files.KEPT_BYTES", SIZE_BYTES)
    monkeypatch.setattr("dpr.store.mapped_files._touched_bytes", 0)
    words, vectors = tmp_path / "words", tmp_path / "vectors"
    for path in (words, vectors):
        np.full(SIZE_BYTES, 7, np.uint8).tofile(path)
    mapped = map_file(words, is_given_back=False), map_file(vectors)
    assert all((each == 7).all() for each in mapped)
    touch(SIZE_BYTES)
    assert (rss_of(words), rss_of(vectors)) == (SIZE_BYTES, 0)


def test_work_of_many_questions_keeps_more_until_it_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dpr.store.mapped_files.KEPT_BYTES", SIZE_BYTES)
    monkeypatch.setattr("dpr.store.mapped_files.MOST_KEPT_BYTES", 4 * SIZE_BYTES)
    monkeypatch.setattr("dpr.store.mapped_files._touched_bytes", 0)
    paths = [tmp_path / str(number) for number in range(4)]
    for path in paths:
        np.full(SIZE_BYTES, 7, np.uint8).tofile(path)
    mapped = [map_file(path) for path in paths]

    def read_all() -> int:
        assert all((each == 7).all() for each in mapped)
        return sum(map(rss_of, paths))

    with keeping_more(), keeping_more():
        assert read_all() == 4 * SIZE_BYTES
        touch(3 * SIZE_BYTES, 0)
        assert sum(map(rss_of, paths)) == 4 * SIZE_BYTES
        touch(SIZE_BYTES, 0)
        assert sum(map(rss_of, paths)) == 0
        assert read_all() == 4 * SIZE_BYTES
        touch(SIZE_BYTES, 0)
    assert sum(map(rss_of, paths)) == 0


def test_a_file_is_unmapped_with_its_last_view(tmp_path: Path) -> None:
    path = tmp_path / "numbers"
    path.write_bytes(bytes(range(200)))
    some = map_file(path)[100:110]
    assert str(path) in Path("/proc/self/maps").read_text()
    path.unlink()
    touch(0)
    assert some.tolist() == list(range(100, 110))
    del some
    assert str(path) not in Path("/proc/self/maps").read_text()
