"""The cache of this machine: entries are always whole, the size is bounded, the least recently used leaves first."""

import mmap
import os
import random
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dpr.errors import RecipeError, StoreError
from dpr.store.cache import Cache, local_cache
from tests.store.together import run_together
from tests.store.unprivileged import ROOT, public_folder, run_unprivileged

VARIABLES = ("DPR_CACHE", "DPR_CACHE_GB", "XDG_CACHE_HOME")


@pytest.fixture
def cache(tmp_path: Path) -> Cache:
    return Cache(tmp_path / "cache", 1_000_000)


def writing(data: bytes) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        path.write_bytes(data)

    return write


def refuse(path: Path) -> None:
    raise AssertionError(f"{path} is made again")


def filling(**files: bytes) -> Callable[[Path], None]:
    def fill(folder: Path) -> None:
        for name, data in files.items():
            (folder / name).write_bytes(data)

    return fill


def leave_idle(path: Path, seconds: float) -> None:
    """Set the time of an entry's last use, in seconds before now."""
    status = path.stat()
    then = time.time() - seconds
    os.utime(path, (then, then if path.is_dir() else status.st_mtime))


def unfinished(cache: Cache) -> list[str]:
    return [path.name for path in (cache.folder / "temporary").iterdir()]


class TestPlaceAndBound:
    @pytest.fixture(autouse=True)
    def _bare(self, monkeypatch: pytest.MonkeyPatch) -> None:
        for name in VARIABLES:
            monkeypatch.delenv(name, raising=False)
        monkeypatch.setenv("HOME", "/home/somebody")

    @pytest.mark.parametrize(
        ("environment", "folder"),
        [
            ({}, "/home/somebody/.cache/dpr"),
            ({"XDG_CACHE_HOME": "/var/xdg"}, "/var/xdg/dpr"),
            ({"XDG_CACHE_HOME": "relative"}, "/home/somebody/.cache/dpr"),
            ({"XDG_CACHE_HOME": "", "DPR_CACHE": ""}, "/home/somebody/.cache/dpr"),
            ({"XDG_CACHE_HOME": "/var/xdg", "DPR_CACHE": "/fast/disk"}, "/fast/disk"),
            ({"DPR_CACHE": "~/fast"}, "/home/somebody/fast"),
            ({"DPR_CACHE": "relative"}, str(Path.cwd() / "relative")),
        ],
    )
    def test_place(self, monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], folder: str) -> None:
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        assert local_cache().folder == Path(folder)

    def test_the_environment_is_read_each_time(self, monkeypatch: pytest.MonkeyPatch) -> None:
        assert local_cache().max_bytes == 50 * 10**9
        monkeypatch.setenv("DPR_CACHE_GB", "0.5")
        assert local_cache().max_bytes == 500_000_000
        monkeypatch.setenv("DPR_CACHE", "/elsewhere")
        assert local_cache().folder == Path("/elsewhere")

    @pytest.mark.parametrize("text", ["0", "-1", "nan", "inf", "fifty", "5 GB", "5,5"])
    def test_a_bound_that_is_no_positive_number(self, monkeypatch: pytest.MonkeyPatch, text: str) -> None:
        monkeypatch.setenv("DPR_CACHE_GB", text)
        with pytest.raises(RecipeError, match=f"DPR_CACHE_GB is '{text}'; set it to a positive number of gigabytes"):
            local_cache()

    def test_no_home(self) -> None:
        if os.geteuid() != 0:
            pytest.skip("only root can become a user whom the system does not know")
        code = "import os; os.setuid(54_321); from dpr.store.cache import local_cache\ntry: local_cache()\n"
        code += "except Exception as error: print(type(error).__name__, error)"
        inherited = {name: value for name, value in os.environ.items() if name not in ("HOME", *VARIABLES)}
        # the modules are imported before the rights are given up
        command = (sys.executable, "-c", "import dpr.store.cache; " + code)
        done = subprocess.run(command, env=inherited, cwd=ROOT, capture_output=True, text=True, check=True)
        assert done.stdout.startswith("StoreError there is no folder for the cache (")
        assert done.stdout.strip().endswith("); set HOME or DPR_CACHE to one")


class TestEntries:
    def test_a_file_is_made_once(self, cache: Cache) -> None:
        path = cache.fetch("objects/0a1b.faiss", writing(b"123"))
        assert path.read_bytes() == b"123"
        assert path.name == "0a1b.faiss"
        assert path.is_relative_to(cache.folder)
        assert cache.fetch("objects/0a1b.faiss", refuse) == path
        assert unfinished(cache) == []

    def test_a_folder_is_made_once(self, cache: Cache) -> None:
        path = cache.fetch_folder("models/bert", filling(config=b"1", weights=b"23"))
        assert {file.name: file.read_bytes() for file in path.iterdir()} == {"config": b"1", "weights": b"23"}
        assert cache.fetch_folder("models/bert", refuse) == path
        assert unfinished(cache) == []

    def test_the_maker_gets_a_path_of_its_own_with_the_name_of_the_entry(self, cache: Cache) -> None:
        paths: list[Path] = []

        def make(path: Path) -> None:
            paths.append(path)
            path.write_bytes(b"")
            cache.remove("a/b.npy")

        for _ in range(2):
            cache.fetch("a/b.npy", make)
            cache.remove("a/b.npy")
        assert [path.name for path in paths] == ["b.npy", "b.npy"]
        assert paths[0] != paths[1]
        assert not paths[0].exists()

    @pytest.mark.parametrize("fetch", [Cache.fetch, Cache.fetch_folder])
    def test_a_maker_that_fails_leaves_nothing(self, cache: Cache, fetch: Callable[..., Path]) -> None:
        def fail(path: Path) -> None:
            (path / "file" if path.is_dir() else path).write_bytes(b"half")
            raise KeyError("the error of the maker")

        with pytest.raises(KeyError, match="the error of the maker"):
            fetch(cache, "a", fail)
        assert [path for path in cache.folder.rglob("*") if path.is_file()] == []
        assert unfinished(cache) == []

    def test_a_maker_that_dies_leaves_no_entry(self, cache: Cache) -> None:
        code = (
            "import os, sys; from pathlib import Path; from dpr.store.cache import Cache; "
            "Cache(Path(sys.argv[1]), 1000).fetch('a/b', lambda path: (path.write_bytes(b'half'), os._exit(9)))"
        )
        command = (sys.executable, "-c", code, str(cache.folder))
        assert subprocess.run(command, cwd=ROOT, check=False).returncode == 9
        assert cache.fetch("a/b", writing(b"whole")).read_bytes() == b"whole"

    def test_removed_and_vanished_entries_are_made_again(self, cache: Cache) -> None:
        cache.fetch("a", writing(b"1"))
        cache.remove("a")
        path = cache.fetch("a", writing(b"2"))
        assert path.read_bytes() == b"2"
        path.unlink()
        assert cache.fetch("a", writing(b"3")).read_bytes() == b"3"
        cache.fetch_folder("f", filling(one=b"1"))
        cache.remove("f")
        assert [file.name for file in cache.fetch_folder("f", filling(two=b"2")).iterdir()] == ["two"]

    def test_a_damaged_entry_is_noticed_by_its_digest_and_made_again(self, cache: Cache) -> None:
        path = cache.fetch("a", writing(b"whole"))
        sound = cache.digest(path)
        path.write_bytes(b"wrong")  # at once, with the same size
        assert cache.digest(path) != sound
        cache.remove("a")
        assert cache.digest(cache.fetch("a", writing(b"whole"))) == sound

    def test_removing_takes_only_the_entry(self, cache: Cache) -> None:
        inner = cache.fetch("a/b", writing(b"1"))
        cache.remove("a")
        cache.remove("none")
        cache.remove("a/b/c")
        assert inner.read_bytes() == b"1"

    def test_a_file_and_a_folder_may_have_one_key(self, cache: Cache) -> None:
        file = cache.fetch("a", writing(b"1"))
        folder = cache.fetch_folder("a", filling(b=b"2"))
        assert file.read_bytes() == b"1"
        assert (folder / "b").read_bytes() == b"2"

    @pytest.mark.parametrize(
        "key", ["", "/etc/x", "../x", "a/../b", "a//b", "a/", ".a", "a b", "a\\b", "a\n", "a.folder/b"]
    )
    def test_keys_that_are_no_plain_names(self, cache: Cache, key: str) -> None:
        for call in (
            lambda: cache.fetch(key, refuse),
            lambda: cache.fetch_folder(key, refuse),
            lambda: cache.remove(key),
        ):
            with pytest.raises(StoreError, match="cache key"):
                call()
        assert not cache.folder.exists()

    def test_a_file_where_entries_have_their_folder(self, cache: Cache) -> None:
        cache.fetch("a", writing(b"1"))
        with pytest.raises(StoreError, match=r"cannot be used .* set DPR_CACHE"):
            cache.fetch("a/b", writing(b"1"))


IMPORTS = """
import fcntl, hashlib, os, random, sys, time
from pathlib import Path
from dpr.store import cache as cache_module
from dpr.store.cache import Cache
"""
FETCH = """
def make(path):
    with open(sys.argv[2], "a") as log:
        log.write("made\\n")
    with (path / "file" if path.is_dir() else path).open("wb") as file:
        for _ in range(50):  # slowly, so that all are at it at once
            file.write(bytes(100_000))
            file.flush()
            time.sleep(0.002)
def refuse(*_):
    raise OSError(37, "No locks available")
if sys.argv[4] == "without locks":
    fcntl.flock = refuse
cache = Cache(Path(sys.argv[1]), 10**9)
path = cache.fetch_folder("a/b", make) / "file" if sys.argv[3] == "folder" else cache.fetch("a/b", make)
print(path, hashlib.sha256(path.read_bytes()).hexdigest())
"""


@pytest.mark.slow
class TestSeveralProcesses:
    @pytest.mark.parametrize("kind", ["file", "folder"])
    @pytest.mark.parametrize("locks", ["with locks", "without locks"])
    def test_all_get_one_whole_entry(self, cache: Cache, tmp_path: Path, kind: str, locks: str) -> None:
        outputs = run_together(IMPORTS, FETCH, 4, cache.folder, tmp_path / "log", kind, locks)
        (path, digest) = outputs[0].split()
        assert outputs == [f"{path} {digest}"] * 4
        assert Path(path).read_bytes() == bytes(5_000_000)
        assert digest == cache.digest(Path(path))
        assert unfinished(cache) == []
        made = (tmp_path / "log").read_text().count("made")
        assert made == 1 if locks == "with locks" else made > 1

    def test_they_evict_at_once(self, cache: Cache) -> None:
        code = """
cache_module.IN_USE_SECONDS = 0.0
cache = Cache(Path(sys.argv[1]), 3500)
order = random.Random(os.urandom(8))
for _ in range(150):
    key = str(order.randrange(10))
    path = cache.fetch(f"numbers/{key}", lambda path: path.write_bytes(key.encode() * 1000) and None)
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        continue  # nothing is in use here, so it may be gone at once
    assert data == key.encode() * 1000, data
print("done")
"""
        assert run_together(IMPORTS, code, 4, cache.folder) == ["done"] * 4
        sizes = [path.stat().st_size for path in (cache.folder / "entries").rglob("*") if path.is_file()]
        assert sizes in ([1000], [1000] * 2, [1000] * 3)  # two that evict at once may remove one more than one would
        assert unfinished(cache) == []


class TestBound:
    def make(self, folder: Path, max_bytes: int, sizes: dict[str, int]) -> Cache:
        """A cache with idle entries, the first one idle for the longest time."""
        cache = Cache(folder, 10**9)
        for place, (key, size_bytes) in enumerate(sizes.items()):
            if key.startswith("folder"):
                path = cache.fetch_folder(
                    key, filling(one=bytes(size_bytes - size_bytes // 3), two=bytes(size_bytes // 3))
                )
            else:
                path = cache.fetch(key, writing(bytes(size_bytes)))
            leave_idle(path, 90_000 - place)
        return Cache(folder, max_bytes)

    def keys(self, cache: Cache) -> set[str]:
        root = cache.folder / "entries"
        return {path.relative_to(root).as_posix().removesuffix(".folder") for path in root.glob("*")}

    def test_the_least_recently_used_leave(self, tmp_path: Path) -> None:
        cache = self.make(tmp_path, 4000, {"a": 1000, "b": 1000, "folder-c": 1000, "d": 1000})
        cache.fetch("a", refuse)
        cache.fetch("e", writing(bytes(500)))
        assert self.keys(cache) == {"a", "folder-c", "d", "e"}  # 3500
        cache.fetch("f", writing(bytes(501)))
        assert self.keys(cache) == {"a", "d", "e", "f"}  # 3001: the folder left whole
        cache.fetch("g", writing(bytes(999)))
        assert self.keys(cache) == {"a", "d", "e", "f", "g"}  # exactly the bound
        assert unfinished(cache) == []

    def test_a_folder_that_is_used_stays(self, tmp_path: Path) -> None:
        cache = self.make(tmp_path, 3000, {"folder-a": 1000, "folder-b": 1000})
        cache.fetch_folder("folder-a", refuse)
        cache.fetch("c", writing(bytes(1500)))
        assert self.keys(cache) == {"folder-a", "c"}

    def test_to_scan_a_folder_is_not_to_use_it(self, tmp_path: Path) -> None:
        cache = self.make(tmp_path, 3000, {"folder-a": 1000, "b": 1000})
        cache.fetch("c", writing(bytes(500)))  # scans all, and removes nothing
        cache.fetch("d", writing(bytes(600)))
        assert self.keys(cache) == {"b", "c", "d"}

    def test_what_was_just_used_stays_though_the_bound_is_exceeded(self, tmp_path: Path) -> None:
        cache = Cache(tmp_path, 1000)
        for key in ("a", "b", "c"):
            cache.fetch(key, writing(bytes(600)))
        assert self.keys(cache) == {"a", "b", "c"}
        leave_idle(tmp_path / "entries" / "a", 500)
        leave_idle(tmp_path / "entries" / "b", 700)
        cache.fetch("d", writing(bytes(600)))
        assert self.keys(cache) == {"a", "c", "d"}

    def test_what_is_used_between_the_scan_and_the_removal_stays(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        cache = self.make(tmp_path, 2000, {"a": 1000, "b": 1000})
        scan = cache._entries

        def scan_and_use() -> list[object]:
            found = list(scan())
            cache.fetch("a", refuse)  # another process does
            return found  # type: ignore[return-value]

        monkeypatch.setattr(cache, "_entries", scan_and_use)
        cache.fetch("c", writing(bytes(1000)))
        assert self.keys(cache) == {"a", "c"}

    def test_a_mapped_file_can_be_read_after_it_left(self, tmp_path: Path) -> None:
        cache = Cache(tmp_path, 1000)
        path = cache.fetch("a", writing(b"x" * 900))
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
            leave_idle(path, 700)
            cache.fetch("b", writing(bytes(900)))
            assert not path.exists()
            assert mapped[:] == b"x" * 900

    def test_other_files_in_the_folder_are_left_alone(self, tmp_path: Path) -> None:
        (tmp_path / "data").write_bytes(bytes(5000))
        os.utime(tmp_path / "data", (0, 0))
        cache = Cache(tmp_path, 1000)
        cache.fetch("a", writing(bytes(900)))
        assert self.keys(cache) == {"a"}
        assert (tmp_path / "data").exists()

    def test_an_entry_from_the_future_can_leave(self, tmp_path: Path) -> None:
        cache = self.make(tmp_path, 1000, {"a": 900})
        leave_idle(tmp_path / "entries" / "a", -1e8)
        cache.fetch("b", writing(bytes(900)))
        assert self.keys(cache) == {"b"}

    @settings(max_examples=40, deadline=None)
    @given(
        sizes=st.lists(st.integers(0, 1000), min_size=1, max_size=8),
        bound=st.integers(1, 4000),
        used=st.lists(st.integers(0, 7), max_size=3),
        seed=st.integers(),
    )
    def test_against_a_model(
        self, tmp_path_factory: pytest.TempPathFactory, sizes: list[int], bound: int, used: list[int], seed: int
    ) -> None:
        folder = tmp_path_factory.mktemp("cache")
        idle = random.Random(seed).sample(range(700, 100_000), len(sizes))
        cache = Cache(folder, bound)
        maker = Cache(folder, 10**9)
        for number, size_bytes in enumerate(sizes):
            leave_idle(maker.fetch(str(number), writing(bytes(size_bytes))), idle[number])
        for number in {number for number in used if number < len(sizes)}:
            cache.fetch(str(number), refuse)
            idle[number] = 0
        cache.fetch("new", writing(bytes(700)))

        stay = {str(number): size_bytes for number, size_bytes in enumerate(sizes)} | {"new": 700}
        for number in sorted((n for n in range(len(sizes)) if idle[n]), key=lambda n: -idle[n]):
            if sum(stay.values()) <= bound:
                break
            del stay[str(number)]
        assert self.keys(cache) == set(stay)


FETCH_AND_PRINT = """
from pathlib import Path
from dpr.errors import StoreError
from dpr.store.cache import local_cache
def make(path):
    path.write_bytes(b"made")
try:
    print(local_cache().fetch(sys.argv[1], make).read_bytes())
except StoreError as error:
    print(error)
print(local_cache().digest(Path(sys.argv[2])))
"""


class TestFoldersThatCannotBeUsed:
    def test_it_lies_below_a_file(self, tmp_path: Path) -> None:
        (tmp_path / "file").write_bytes(b"")
        cache = Cache(tmp_path / "file" / "cache", 1000)
        for call in (lambda: cache.fetch("a", refuse), lambda: cache.fetch_folder("a", refuse)):
            with pytest.raises(StoreError, match=r"cannot be used .* set DPR_CACHE to a folder that can") as caught:
                call()
            assert str(cache.folder) in str(caught.value)
        cache.remove("a")

    @pytest.mark.parametrize("mode", [0o000, 0o444, 0o555])
    def test_it_may_not_be_written(self, mode: int) -> None:
        with public_folder() as folder:
            (folder / "file").write_bytes(b"123")
            (folder / "cache").mkdir()
            (folder / "cache").chmod(mode)
            environment = {"DPR_CACHE": str(folder / "cache")}
            message, digest = run_unprivileged(FETCH_AND_PRINT, "a", folder / "file", environment=environment).split(
                "\n"
            )
            assert message == (
                f"the cache folder {folder / 'cache'} cannot be used (Permission denied); set DPR_CACHE to a folder "
                "that can be written"
            )
            assert digest == "a665a45920422f9d417e4867efdc4fb8a04a1f3fff1fa07e998e86f7f7a27ae3"  # of "123"

    def test_what_is_in_a_read_only_cache_can_be_used(self) -> None:
        with public_folder() as folder:
            Cache(folder / "cache", 1000).fetch("a", writing(b"by another user"))
            for path in [folder / "cache", *(folder / "cache").rglob("*")]:
                path.chmod(0o555)
            environment = {"DPR_CACHE": str(folder / "cache")}
            data, _ = run_unprivileged(
                FETCH_AND_PRINT, "a", folder / "cache" / "entries" / "a", environment=environment
            ).split("\n")
            assert data == "b'by another user'"

    def test_home_may_not_be_written(self) -> None:
        with public_folder() as folder:
            (folder / "file").write_bytes(b"123")
            output = run_unprivileged(FETCH_AND_PRINT, "a", folder / "file", environment={"HOME": str(folder)})
            assert output.startswith(
                f"the cache folder {folder}/.cache/dpr cannot be used (Permission denied); set DPR"
            )
