"""What dead processes left in the cache's folder, and locks between processes."""

import os
import subprocess
import sys
import time
import uuid
from pathlib import Path

import pytest

from dpr.errors import StoreError
from dpr.store.cache import Cache
from dpr.store.cache_folder import CacheFolder, measure
from tests.store.together import run_together
from tests.store.unprivileged import ROOT

DIE = """
import os, sys
from pathlib import Path
from dpr.store.cache_folder import CacheFolder
with CacheFolder(Path(sys.argv[1])).alone("work"), CacheFolder(Path(sys.argv[1])).scratch() as scratch:
    (scratch / "half").write_bytes(b"1234")
    os._exit(9)
"""


def set_age(path: Path, seconds: float) -> None:
    then = time.time() - seconds
    for one in (*path.rglob("*"), path):
        os.utime(one, (then, then))


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in (folder / "temporary").iterdir())


def test_scratch_is_new_and_removed(tmp_path: Path) -> None:
    place = CacheFolder(tmp_path / "cache")
    with place.scratch() as first, place.scratch() as second:
        assert first != second
        (first / "a").write_bytes(b"1")
        (first / "b").mkdir()
        assert len(names(place.path)) == 2
    assert names(place.path) == []


def test_what_a_dead_process_left_goes_after_a_day(tmp_path: Path) -> None:
    command = (sys.executable, "-c", DIE, str(tmp_path))
    assert subprocess.run(command, cwd=ROOT, check=False).returncode == 9
    left = names(tmp_path)
    assert len(left) == 2  # a scratch folder and a lock
    cache = Cache(tmp_path, 10**9)
    cache.fetch("a", lambda path: path.touch())
    assert names(tmp_path) == left  # its writer may live
    for name in left:
        set_age(tmp_path / "temporary" / name, 90_000)
    cache.fetch("b", lambda path: path.touch())
    assert names(tmp_path) == []


def test_a_folder_in_which_anything_is_new_stays(tmp_path: Path) -> None:
    place = CacheFolder(tmp_path)
    folder = tmp_path / "temporary" / uuid.uuid4().hex
    (folder / "deep").mkdir(parents=True)
    (folder / "deep" / "file").write_bytes(b"1")
    set_age(folder, 90_000)
    (folder / "deep" / "file").write_bytes(b"2")  # the download goes on
    place.remove_leftovers()
    assert (folder / "deep" / "file").exists()


def test_what_is_not_its_own_stays(tmp_path: Path) -> None:
    place = CacheFolder(tmp_path)
    (tmp_path / "temporary").mkdir()
    (tmp_path / "temporary" / "letters.txt").write_bytes(b"dear")
    set_age(tmp_path / "temporary" / "letters.txt", 1e8)
    place.remove_leftovers()
    assert names(tmp_path) == ["letters.txt"]


def test_a_killed_process_holds_no_lock(tmp_path: Path) -> None:
    command = (sys.executable, "-c", DIE, str(tmp_path))
    assert subprocess.run(command, cwd=ROOT, check=False).returncode == 9
    with CacheFolder(tmp_path).alone("work"):  # would wait forever
        pass


def test_other_work_goes_on_meanwhile(tmp_path: Path) -> None:
    place = CacheFolder(tmp_path)
    with place.alone("one"), place.alone("two"):  # would wait forever
        assert len(names(tmp_path)) == 2
    assert names(tmp_path) == []


WRITE = """
own = os.urandom(8).hex()
place = CacheFolder(Path(sys.argv[1]))
for number in range(300):
    path, text = place.path / "digests" / f"{own}-{number}", f"{own} {number}" * 1000
    place.write(path, text)
    assert path.read_text() == text
print("done")
"""


@pytest.mark.slow
def test_what_processes_with_one_id_write_at_once_is_whole(tmp_path: Path) -> None:
    imports = "from pathlib import Path\nfrom dpr.store.cache_folder import CacheFolder\n"
    assert run_together(imports, WRITE, 4, tmp_path) == ["done"] * 4
    assert len(list((tmp_path / "digests").iterdir())) == 1200
    assert names(tmp_path) == []


def test_explained(tmp_path: Path) -> None:
    expected = rf"^the cache folder {tmp_path} cannot be used \(No space left on device\)"
    with pytest.raises(StoreError, match=expected), CacheFolder(tmp_path).explained():
        raise OSError(28, os.strerror(28))


def test_measure(tmp_path: Path) -> None:
    (tmp_path / "folder" / "deep").mkdir(parents=True)
    (tmp_path / "folder" / "a").write_bytes(bytes(1000))
    (tmp_path / "folder" / "deep" / "b").write_bytes(bytes(234))
    set_age(tmp_path / "folder", 1000)
    os.utime(tmp_path / "folder" / "deep" / "b", (5e8, 2e9))
    assert measure(tmp_path / "folder") == (1234, 2e9)
    assert measure(tmp_path / "folder" / "a")[0] == 1000
    assert measure(tmp_path / "none") == (0, 0.0)
