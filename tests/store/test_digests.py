"""Remembered digests: equal to hashlib's, read from memory only while the file is the same, hashed once by many.

Whether a file was read is shown by changing its content behind the memory's back: with the same size, inode and
modification time. A reader of the file gets the new digest, the memory gives the old one.
"""

import hashlib
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from dpr.errors import MissingObjectError, StoreError
from dpr.store import digests
from dpr.store.cache import Cache
from tests.store.together import run_together
from tests.store.unprivileged import ROOT, public_folder, run_unprivileged


@pytest.fixture
def cache(tmp_path: Path) -> Cache:
    return Cache(tmp_path / "cache", 1_000_000)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A file that nobody has changed lately."""
    (tmp_path / "file").write_bytes(b"first")
    set_age(tmp_path / "file", 10.0)
    return tmp_path / "file"


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def set_age(path: Path, seconds: float) -> None:
    then = time.time() - seconds
    os.utime(path, (then, then))


def change_secretly(path: Path, data: bytes) -> None:
    status = path.stat()
    assert len(data) == status.st_size
    path.write_bytes(data)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


@pytest.mark.parametrize("size_bytes", [0, 1, 3_000_001])
def test_it_is_the_sha256(cache: Cache, tmp_path: Path, size_bytes: int) -> None:
    (tmp_path / "file").write_bytes(bytes(size_bytes))
    assert cache.digest(tmp_path / "file") == sha256(bytes(size_bytes))


def test_it_is_remembered_on_this_machine(cache: Cache, file: Path) -> None:
    assert cache.digest(file) == sha256(b"first")
    change_secretly(file, b"other")
    assert cache.digest(file) == sha256(b"first")
    code = "import sys; from pathlib import Path; from dpr.store.cache import Cache\n"
    code += "print(Cache(Path(sys.argv[1]), 1).digest(Path(sys.argv[2])))"
    # from another folder, by a relative path
    command = (sys.executable, "-c", code, str(cache.folder), file.name)
    done = subprocess.run(
        command, cwd=file.parent, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == sha256(b"first")
    assert Cache(file.parent / "another cache", 1).digest(file) == sha256(b"other")


def test_it_is_refreshed_when_the_file_changes(cache: Cache, file: Path) -> None:
    for data, age in ((b"first", 10.0), (b"later", 9.0), (b"longer than before", 9.0)):
        file.write_bytes(data)
        set_age(file, age)
        assert cache.digest(file) == sha256(data)
        change_secretly(file, data[::-1])
        assert cache.digest(file) == sha256(data)  # remembered again


def test_another_file_in_its_place_is_another_file(cache: Cache, file: Path) -> None:
    cache.digest(file)
    status = file.stat()
    other = file.with_name("other")
    other.write_bytes(b"other")
    os.utime(other, ns=(status.st_atime_ns, status.st_mtime_ns))
    os.replace(other, file)
    assert file.stat().st_mtime_ns == status.st_mtime_ns
    assert cache.digest(file) == sha256(b"other")


@pytest.mark.parametrize("age", [0.0, 1.0, -5.0])
def test_a_file_that_was_just_changed_is_not_remembered(cache: Cache, file: Path, age: float) -> None:
    set_age(file, age)
    cache.digest(file)
    change_secretly(file, b"other")
    assert cache.digest(file) == sha256(b"other")


def test_a_file_that_changes_while_it_is_hashed_is_not_remembered(
    cache: Cache, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = hashlib.file_digest

    def hash_and_change(*arguments: object) -> object:
        digest = original(*arguments)  # type: ignore[arg-type]
        file.write_bytes(b"other")
        set_age(file, 9.0)
        return digest

    monkeypatch.setattr(hashlib, "file_digest", hash_and_change)
    assert cache.digest(file) == sha256(b"first")
    monkeypatch.undo()
    assert cache.digest(file) == sha256(b"other")


def test_a_fetched_file_is_remembered_at_once_and_damage_is_noticed_at_once(cache: Cache) -> None:
    def make(path: Path) -> None:
        path.write_bytes(b"first")

    path = cache.fetch("a", make)
    assert cache.digest(path) == sha256(b"first")
    change_secretly(path, b"other")
    assert cache.digest(path) == sha256(b"first")
    cache.fetch("a", make)  # to use it changes nothing of that
    assert cache.digest(path) == sha256(b"first")
    path.write_bytes(b"wrong")
    assert cache.digest(path) == sha256(b"wrong")


@pytest.mark.parametrize("damage", [b"", b"nonsense", b"\xff\xff", None])
def test_a_damaged_record_is_made_again(cache: Cache, file: Path, damage: bytes | None) -> None:
    cache.digest(file)
    (record,) = (path for path in (cache.folder / "digests").rglob("*") if path.is_file())
    record.write_bytes(record.read_bytes()[:-10] if damage is None else damage)
    change_secretly(file, b"other")
    assert cache.digest(file) == sha256(b"other")
    change_secretly(file, b"third")
    assert cache.digest(file) == sha256(b"other")


def test_many_processes_hash_a_file_once(cache: Cache, file: Path, tmp_path: Path) -> None:
    imports = "import hashlib, sys, time\nfrom pathlib import Path\nfrom dpr.store.cache import Cache\n"
    code = """
original = hashlib.file_digest
def note(*arguments):
    with open(sys.argv[3], "a") as log:
        log.write("hashed\\n")
    time.sleep(0.5)  # so that all are at it at once
    return original(*arguments)
hashlib.file_digest = note
print(Cache(Path(sys.argv[1]), 1).digest(Path(sys.argv[2])))
"""
    outputs = run_together(imports, code, 5, cache.folder, file, tmp_path / "log")
    assert outputs == [sha256(b"first")] * 5
    assert (tmp_path / "log").read_text() == "hashed\n"
    assert list((cache.folder / "temporary").iterdir()) == []


def records(cache: Cache) -> set[Path]:
    return {path for path in (cache.folder / "digests").rglob("*") if path.is_file()}


def test_the_records_are_bounded(cache: Cache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(digests, "MAX_RECORDS_PER_FOLDER", 2)
    for number in range(600):
        path = tmp_path / str(number)
        path.touch()
        set_age(path, 10.0)
        cache.digest(path)
    assert 256 <= len(records(cache)) <= 2 * 256


def test_the_least_recently_used_records_leave(cache: Cache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(digests, "MAX_RECORDS_PER_FOLDER", 3)
    in_one_folder = [
        path for path in (tmp_path / str(number) for number in range(10_000)) if sha256(bytes(path))[:2] == "7a"
    ]
    for path in in_one_folder[:4]:
        path.write_bytes(b"first")
        set_age(path, 10.0)
    for place, path in enumerate(in_one_folder[:3]):
        before = records(cache)
        cache.digest(path)
        (record,) = records(cache) - before
        set_age(record, 1000.0 - place)
        change_secretly(path, b"other")
    cache.digest(in_one_folder[0])  # it was used the longest time ago, and is used again
    cache.digest(in_one_folder[3])
    assert len(records(cache)) == 2
    assert cache.digest(in_one_folder[0]) == sha256(b"first")
    assert cache.digest(in_one_folder[1]) == sha256(b"other")
    assert cache.digest(in_one_folder[2]) == sha256(b"other")


def test_a_file_that_is_not_there(cache: Cache, tmp_path: Path) -> None:
    with pytest.raises(MissingObjectError, match="no-file is not there"):
        cache.digest(tmp_path / "no-file")


def test_a_file_that_cannot_be_read(cache: Cache, tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=r"cannot be read \(Is a directory\)") as caught:
        cache.digest(tmp_path)
    assert not isinstance(caught.value, MissingObjectError)
    code = "from pathlib import Path\nfrom dpr.store.cache import local_cache\nfrom dpr.errors import StoreError\n"
    code += "try: local_cache().digest(Path(sys.argv[1]))\nexcept StoreError as error: print(error)"
    with public_folder() as folder:
        (folder / "secret").write_bytes(b"1")
        (folder / "secret").chmod(0)
        output = run_unprivileged(code, folder / "secret", environment={"DPR_CACHE": "/nowhere"})
        assert output == f"file {folder / 'secret'} cannot be read (Permission denied)"


def test_a_cache_that_cannot_be_written_changes_no_digest(file: Path) -> None:
    cache = Cache(file / "below a file", 1)
    assert cache.digest(file) == sha256(b"first")
    change_secretly(file, b"other")
    assert cache.digest(file) == sha256(b"other")
