"""What every store promises, checked around the store: plain file I/O for a folder, boto3 for S3."""

import filecmp
import multiprocessing
import os
import pickle
import random
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from dpr.errors import MissingObjectError, StoreError
from dpr.store import Store
from dpr.store.proof import prove_put_if_absent
from tests.store.conftest import Backend

NAMES = [
    "plain.json",
    "deep/er/and deeper/file.parquet",
    "Überseestraße/файл/文書.parquet",
    "odd +%2F #&='\"()!~*$,;@^`{}|<>[]:name",
    "question?versionId=7",
    "-dash/_under/.hidden",
]
# crosses the boundaries of S3 requests and of windows of them: 8 MiB and 4 * 8 MiB
LARGE = random.Random(7).randbytes(20_000_001)
WRITERS, ROUNDS = 2, 50

RACER = """
import sys
from pathlib import Path
from dpr.store import open_store
store = open_store(sys.argv[1])
file = Path(sys.argv[3])
file.write_text(sys.argv[2])
for line in sys.stdin:
    name = line.strip()
    if name.endswith("file"):
        print(store.put_file_if_absent(name, file), flush=True)
    else:
        print(store.put_if_absent(name, sys.argv[2].encode()), flush=True)
"""

MEMORY = """
import resource, sys
from pathlib import Path
from dpr.store import open_store
url, name, file, copy = sys.argv[1:]
store = open_store(url)
store.exists(name)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
store.put_file_if_absent(name, Path(file))
store.fetch(name, Path(copy))
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024)
"""


class TestStoreContract:
    @pytest.mark.parametrize("name", NAMES)
    def test_put_is_seen_around_the_store(self, backend: Backend, folder: str, name: str) -> None:
        backend.store.put(folder + name, b"some bytes")
        assert backend.read(folder + name) == b"some bytes"
        assert backend.names(folder) == [folder + name]

    @pytest.mark.parametrize("name", NAMES)
    def test_what_is_written_around_the_store_is_seen(self, backend: Backend, folder: str, name: str) -> None:
        store = backend.store
        assert not store.exists(folder + name)
        assert list(store.list(folder)) == []
        backend.write(folder + name, b"some bytes")
        assert store.get(folder + name) == b"some bytes"
        assert store.exists(folder + name)
        assert store.size(folder + name) == 10
        assert [(info.name, info.size_bytes) for info in store.list(folder)] == [(folder + name, 10)]

    @pytest.mark.parametrize("name", NAMES)
    def test_delete(self, backend: Backend, folder: str, name: str) -> None:
        backend.write(folder + name, b"x")
        backend.write(folder + "other", b"y")
        backend.store.delete(folder + name)
        backend.store.delete(folder + name)
        assert backend.names(folder) == [folder + "other"]

    def test_empty_object(self, backend: Backend, folder: str, tmp_path: Path) -> None:
        store, name = backend.store, folder + "empty"
        (tmp_path / "empty").write_bytes(b"")
        assert store.put_file_if_absent(name + "-file", tmp_path / "empty") is True
        store.put(name, b"")
        assert backend.read(name) == backend.read(name + "-file") == b""
        assert store.get(name) == store.get_range(name, 0, 5) == store.get_range(name, 3, 5) == b""
        assert store.size(name) == 0
        assert store.exists(name)
        store.fetch(name, tmp_path / "fetched")
        assert (tmp_path / "fetched").read_bytes() == b""
        assert store.put_if_absent(name, b"more") is False
        assert store.put_if_absent(name + "-new", b"") is True

    @pytest.mark.parametrize(
        ("start", "length"),
        [(0, 0), (0, 1), (3, 4), (9, 1), (0, 10), (0, 99), (7, 99), (10, 0), (10, 1), (99, 99), (99, 0)],
    )
    def test_range_is_a_slice(self, backend: Backend, folder: str, start: int, length: int) -> None:
        backend.write(folder + "digits", b"0123456789")
        assert backend.store.get_range(folder + "digits", start, length) == b"0123456789"[start : start + length]

    @pytest.mark.parametrize(("start", "length"), [(-1, 1), (0, -1)])
    def test_negative_range_is_refused(self, backend: Backend, folder: str, start: int, length: int) -> None:
        backend.write(folder + "digits", b"0123456789")
        with pytest.raises(StoreError, match="neither may be negative"):
            backend.store.get_range(folder + "digits", start, length)

    @pytest.mark.parametrize(
        "read",
        [
            lambda store, name, _: store.get(name),
            lambda store, name, _: store.get_range(name, 0, 1),
            lambda store, name, _: store.get_range(name, 0, 0),
            lambda store, name, _: store.size(name),
            lambda store, name, path: store.fetch(name, path),
        ],
        ids=["get", "range", "empty range", "size", "fetch"],
    )
    @pytest.mark.parametrize("missing", ["nothing", "a", "a/b/c"])
    def test_missing_object(
        self, backend: Backend, folder: str, tmp_path: Path, read: Callable[..., object], missing: str
    ) -> None:
        backend.write(folder + "a/b", b"x")  # neither its prefix nor anything below it is an object
        with pytest.raises(MissingObjectError, match=folder + missing) as caught:
            read(backend.store, folder + missing, tmp_path / "fetched")
        assert backend.store.url in str(caught.value)
        assert not backend.store.exists(folder + missing)
        backend.store.delete(folder + missing)
        assert list(tmp_path.iterdir()) == []
        assert backend.names(folder) == [folder + "a/b"]

    @pytest.mark.parametrize(
        "name", ["", "/a", "a/", "a//b", "../a", "a/./b", "a\\b", ".tmp-a", "a\nb", "a\x00", "\ud800"]
    )
    def test_names_that_are_no_plain_paths_are_refused(self, backend: Backend, tmp_path: Path, name: str) -> None:
        store = backend.store
        for call in (
            lambda: store.get(name),
            lambda: store.exists(name),
            lambda: store.put(name, b""),
            lambda: store.put_if_absent(name, b""),
            lambda: store.put_file_if_absent(name, Path(__file__)),
            lambda: store.fetch(name, tmp_path / "fetched"),
            lambda: store.local_path(name),
            lambda: store.delete(name),
        ):
            with pytest.raises(StoreError, match="object name"):
                call()

    def test_put_again(self, backend: Backend, folder: str) -> None:
        backend.store.put(folder + "a", b"same")
        backend.store.put(folder + "a", b"same")
        assert backend.read(folder + "a") == b"same"
        assert backend.names(folder) == [folder + "a"]

    def test_large_object(self, backend: Backend, folder: str, tmp_path: Path) -> None:
        store = backend.store
        (tmp_path / "large").write_bytes(LARGE)
        assert store.put_file_if_absent(folder + "file", tmp_path / "large") is True
        assert backend.read(folder + "file") == LARGE
        assert store.size(folder + "file") == len(LARGE)
        assert store.get(folder + "file") == LARGE
        for start, length in [(0, 17_000_000), (5, 2**23), (2**23 - 1, 2**23 + 2), (11_000_000, 2**40)]:
            assert store.get_range(folder + "file", start, length) == LARGE[start : start + length]
        store.fetch(folder + "file", tmp_path / "fetched")
        assert (tmp_path / "fetched").read_bytes() == LARGE

    def test_fetch_replaces_the_file_whole(self, backend: Backend, folder: str, tmp_path: Path) -> None:
        (tmp_path / "copy").write_bytes(b"something longer that was there before")
        backend.write(folder + "a", b"new")
        backend.store.fetch(folder + "a", tmp_path / "copy")
        assert (tmp_path / "copy").read_bytes() == b"new"
        assert [path.name for path in tmp_path.iterdir()] == ["copy"]

    def test_local_files_that_are_not_there(self, backend: Backend, folder: str, tmp_path: Path) -> None:
        backend.write(folder + "a", b"new")
        with pytest.raises(StoreError, match="copied to") as caught:
            backend.store.fetch(folder + "a", tmp_path / "no folder" / "copy")
        assert not isinstance(caught.value, MissingObjectError)
        with pytest.raises(StoreError, match="no file") as caught:
            backend.store.put_file_if_absent(folder + "b", tmp_path / "no file")
        assert not isinstance(caught.value, MissingObjectError)
        with pytest.raises(StoreError, match="cannot be read"):
            backend.store.put_file_if_absent(folder + "b", tmp_path)  # a folder
        assert backend.names(folder) == [folder + "a"]

    def test_local_path(self, backend: Backend, folder: str) -> None:
        backend.write(folder + "a", b"text")
        path = backend.store.local_path(folder + "a")
        assert path is None or path.read_bytes() == b"text"
        assert (path is None) == backend.store.url.startswith("s3://")

    def test_list(self, backend: Backend, folder: str) -> None:
        names = [folder + name for name in ("a", "a.b", "a/b", "ab/c/d", "b", "z/1", "z/10", "z/2", "ß/é")]
        if not backend.store.url.startswith("s3://"):
            names.remove(folder + "a")  # a folder cannot hold a file and a folder of one name
        for name in random.Random(1).sample(names, len(names)):
            backend.write(name, name.encode())
        for prefix in (folder, folder + "a", folder + "a/", folder + "z/1", folder + "ß", folder + "none", folder[:-1]):
            expected = [(name, len(name.encode())) for name in names if name.startswith(prefix)]
            assert [(info.name, info.size_bytes) for info in backend.store.list(prefix)] == expected

    def test_list_all(self, backend: Backend, folder: str) -> None:
        backend.write(folder + "a", b"")
        names = [info.name for info in backend.store.list()]
        assert folder + "a" in names
        assert names == backend.names("")

    def test_list_more_than_a_page(self, backend: Backend, folder: str) -> None:
        names = [f"{folder}{number:05d}" for number in range(1_020)]
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(lambda name: backend.write(name, b"x"), names))
        assert [info.name for info in backend.store.list(folder)] == names

    def test_modified_is_the_time_of_writing(self, backend: Backend, folder: str) -> None:
        before = time.time()
        backend.store.put(folder + "a", b"x")
        after = time.time()
        (info,) = backend.store.list(folder)
        assert before - 1.1 <= info.modified <= after + 1.1  # some S3 servers keep whole seconds

    def test_put_if_absent(self, backend: Backend, folder: str) -> None:
        store, name = backend.store, folder + "once"
        assert store.put_if_absent(name, b"first") is True
        assert store.put_if_absent(name, b"second") is False
        assert store.put_if_absent(name, b"first") is False
        assert backend.read(name) == b"first"
        backend.write(folder + "other", b"")
        assert store.put_if_absent(folder + "other", b"second") is False
        assert backend.read(folder + "other") == b""
        assert backend.names(folder) == [name, folder + "other"]

    def test_put_if_absent_after_delete(self, backend: Backend, folder: str) -> None:
        assert backend.store.put_if_absent(folder + "a", b"1") is True
        backend.store.delete(folder + "a")
        assert backend.store.put_if_absent(folder + "a", b"2") is True
        assert backend.read(folder + "a") == b"2"

    @pytest.mark.parametrize("size_bytes", [0, 5, len(LARGE)])
    def test_put_file_if_absent(self, backend: Backend, folder: str, tmp_path: Path, size_bytes: int) -> None:
        store, name = backend.store, folder + "once"
        (tmp_path / "first").write_bytes(LARGE[:size_bytes])
        (tmp_path / "second").write_bytes(LARGE[:size_bytes][::-1] + b"2")
        assert store.put_file_if_absent(name, tmp_path / "first") is True
        assert store.put_file_if_absent(name, tmp_path / "first") is False
        assert store.put_file_if_absent(name, tmp_path / "second") is False
        assert store.put_if_absent(name, b"third") is False
        assert backend.read(name) == LARGE[:size_bytes]
        backend.write(folder + "other", b"around the store")
        assert store.put_file_if_absent(folder + "other", tmp_path / "second") is False
        assert backend.read(folder + "other") == b"around the store"
        store.delete(name)
        assert store.put_file_if_absent(name, tmp_path / "second") is True
        assert backend.read(name) == LARGE[:size_bytes][::-1] + b"2"
        assert backend.names(folder) == [name, folder + "other"]
        assert (tmp_path / "first").read_bytes() == LARGE[:size_bytes]

    def test_the_stored_object_is_no_link_to_the_file(self, backend: Backend, folder: str, tmp_path: Path) -> None:
        (tmp_path / "file").write_bytes(b"before")
        backend.store.put_file_if_absent(folder + "a", tmp_path / "file")
        (tmp_path / "file").write_bytes(b"after!")
        assert backend.read(folder + "a") == b"before"

    def test_race_of_large_files_leaves_one_whole_object(self, backend: Backend, folder: str, tmp_path: Path) -> None:
        (tmp_path / "large").write_bytes(LARGE)
        gate = threading.Barrier(WRITERS)

        def race(_: int) -> bool:
            gate.wait(60)
            return backend.store.put_file_if_absent(folder + "large", tmp_path / "large")

        with ThreadPoolExecutor(WRITERS) as pool:
            outcome = list(pool.map(race, range(WRITERS)))
        # not every S3 server knows conditions for uploads in parts: there both may believe that they were first
        assert sum(outcome) in ((1, 2) if backend.store.url.startswith("s3://") else (1,))
        assert backend.read(folder + "large") == LARGE
        assert backend.names(folder) == [folder + "large"]

    def test_proof_holds_and_leaves_nothing(self, backend: Backend) -> None:
        prove_put_if_absent(backend.store)
        assert backend.names("probes/") == []

    def test_race_of_threads_has_one_winner(self, backend: Backend, folder: str) -> None:
        if not backend.conditional_puts_are_atomic:
            pytest.skip("moto looks whether an object is there and then writes it: not one step")
        stores: list[Store] = [pickle.loads(pickle.dumps(backend.store)) for _ in range(WRITERS)]
        gate = threading.Barrier(WRITERS)

        def race(writer: int) -> list[bool]:
            won = []
            for number in range(ROUNDS):
                gate.wait(60)
                won.append(stores[writer].put_if_absent(f"{folder}{number}", f"{writer} {number}".encode()))
            return won

        with ThreadPoolExecutor(WRITERS) as pool:
            outcomes = list(zip(*pool.map(race, range(WRITERS)), strict=True))
        assert [sum(outcome) for outcome in outcomes] == [1] * ROUNDS
        for number, outcome in enumerate(outcomes):
            assert backend.read(f"{folder}{number}") == f"{outcome.index(True)} {number}".encode()

    @pytest.mark.parametrize("kind", ["bytes", "file"])
    def test_race_of_processes_has_one_winner(self, backend: Backend, folder: str, tmp_path: Path, kind: str) -> None:
        if not backend.conditional_puts_are_atomic:
            pytest.skip("moto looks whether an object is there and then writes it: not one step")
        racers = [
            subprocess.Popen(
                (sys.executable, "-c", RACER, backend.store.url, str(writer), str(tmp_path / str(writer))),
                env=os.environ | backend.environment,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
            for writer in range(WRITERS)
        ]
        for number in range(ROUNDS):
            for racer in racers:
                assert racer.stdin
                racer.stdin.write(f"{folder}{number}-{kind}\n")
                racer.stdin.flush()
            outcome = [racer.stdout.readline() if racer.stdout else "" for racer in racers]
            assert sorted(outcome) == ["False\n", "True\n"]
            assert backend.read(f"{folder}{number}-{kind}") == str(outcome.index("True\n")).encode()
        for racer in racers:
            racer.communicate()
            assert racer.returncode == 0

    def test_many_threads_share_a_store(self, backend: Backend, folder: str) -> None:
        def round_trip(number: int) -> bytes:
            backend.store.put(f"{folder}{number}", b"%d" % number)
            return backend.store.get(f"{folder}{number}")

        with ThreadPoolExecutor(16) as pool:
            assert list(pool.map(round_trip, range(64))) == [b"%d" % number for number in range(64)]
        assert len(backend.names(folder)) == 64

    @pytest.mark.filterwarnings("ignore:.*multi-threaded:DeprecationWarning")
    def test_works_after_a_fork(self, backend: Backend, folder: str) -> None:
        backend.store.put(folder + "parent", b"from the parent")  # its connections are open when it forks
        context = multiprocessing.get_context("fork")
        child = context.Process(
            target=lambda: backend.store.put(folder + "child", backend.store.get(folder + "parent")[::-1])
        )
        child.start()
        child.join(60)
        assert child.exitcode == 0
        assert backend.store.get(folder + "child") == b"from the parent"[::-1]

    def test_travels_by_pickle(self, backend: Backend, folder: str) -> None:
        copy = pickle.loads(pickle.dumps(backend.store))
        copy.put(folder + "a", b"x")
        assert copy.url == backend.store.url
        assert backend.read(folder + "a") == b"x"

    def test_files_pass_in_bounded_memory(self, backend: Backend, folder: str, tmp_path: Path) -> None:
        if "moto" in backend.environment.get("AWS_ACCESS_KEY_ID", ""):
            pytest.skip("moto keeps its objects in this process; Ceph shows the same")
        size_bytes = 192 * 2**20
        with (tmp_path / "file").open("wb") as file:
            file.truncate(size_bytes)
        grown = subprocess.run(
            (sys.executable, "-c", MEMORY, backend.store.url, folder + "file", tmp_path / "file", tmp_path / "copy"),
            env=os.environ | backend.environment,
            check=True,
            stdout=subprocess.PIPE,
        ).stdout
        assert filecmp.cmp(tmp_path / "file", tmp_path / "copy", shallow=False)
        assert backend.store.size(folder + "file") == size_bytes
        assert int(grown) < size_bytes / 2
        backend.store.delete(folder + "file")
