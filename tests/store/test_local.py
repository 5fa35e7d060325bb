"""What is special to folders: clashes of files and folders, crashes, rights; and random histories against a dict."""

import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, initialize, invariant, multiple, rule

from dpr.errors import MissingObjectError, StoreError
from dpr.store import LocalStore, open_store
from tests.disk import full_disk, read_only
from tests.store.unprivileged import public_folder, run_unprivileged

BYTES = st.binary(max_size=40)


class StoreAgainstDict(RuleBasedStateMachine):
    """Whatever is done to the store in whatever order, it answers as a dict does."""

    names = Bundle("names")

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp())
        self.store = LocalStore(self.folder / "store")
        self.model: dict[str, bytes] = {}

    def teardown(self) -> None:
        shutil.rmtree(self.folder)

    @initialize(target=names)
    def some_names(self) -> object:
        return multiple("a", "b/c", "b/d", "b/e/f", "ü b")

    @rule(name=names, data=BYTES)
    def put(self, name: str, data: bytes) -> None:
        self.store.put(name, data)
        self.model[name] = data

    @rule(name=names, data=BYTES)
    def put_file_if_absent(self, name: str, data: bytes) -> None:
        (self.folder / "file").write_bytes(data)
        assert self.store.put_file_if_absent(name, self.folder / "file") is (name not in self.model)
        self.model.setdefault(name, data)

    @rule(name=names, data=BYTES)
    def put_if_absent(self, name: str, data: bytes) -> None:
        assert self.store.put_if_absent(name, data) is (name not in self.model)
        self.model.setdefault(name, data)

    @rule(name=names)
    def delete(self, name: str) -> None:
        self.store.delete(name)
        self.model.pop(name, None)

    @rule(name=names)
    def reopen(self, name: str) -> None:
        self.store = LocalStore(self.store.url)
        assert self.store.exists(name) is (name in self.model)

    @rule(name=names, start=st.integers(0, 50), length=st.integers(0, 50))
    def read(self, name: str, start: int, length: int) -> None:
        if name in self.model:
            data = self.model[name]
            assert self.store.get(name) == data
            assert self.store.size(name) == len(data)
            assert self.store.get_range(name, start, length) == data[start : start + length]
        else:
            for call in (self.store.get, self.store.size, lambda name: self.store.get_range(name, start, length)):
                with pytest.raises(MissingObjectError):
                    call(name)

    @rule(prefix=st.sampled_from(["", "a", "b", "b/", "b/e", "b/e/f", "b/e/f/", "ü", "none/"]))
    def list_prefix(self, prefix: str) -> None:
        expected = [(name, len(data)) for name, data in sorted(self.model.items()) if name.startswith(prefix)]
        assert [(info.name, info.size_bytes) for info in self.store.list(prefix)] == expected

    @invariant()
    def nothing_else_lies_about(self) -> None:
        files = (path for path in Path(self.store.url).rglob("*") if path.is_file())
        assert {path.relative_to(self.store.url).as_posix(): path.read_bytes() for path in files} == self.model


StoreAgainstDict.TestCase.settings = settings(max_examples=40, stateful_step_count=20, deadline=None)
TestStoreAgainstDict = StoreAgainstDict.TestCase


@pytest.mark.parametrize(("there", "new"), [("a", "a/b"), ("a", "a/b/c"), ("a/b", "a"), ("a/b/c", "a/b")])
def test_a_file_and_a_folder_of_one_name(tmp_path: Path, there: str, new: str) -> None:
    store = LocalStore(tmp_path / "store")
    store.put(there, b"1")
    (tmp_path / "file").write_bytes(b"2")
    for call in (
        lambda: store.put(new, b"2"),
        lambda: store.put_if_absent(new, b"2"),
        lambda: store.put_file_if_absent(new, tmp_path / "file"),
    ):
        with pytest.raises(StoreError, match="choose another name"):
            call()
    assert [info.name for info in store.list()] == [there]


def test_a_writer_that_dies_leaves_no_object(tmp_path: Path) -> None:
    code = (
        "import os, sys; from pathlib import Path; from dpr.store import local; "
        "local._sync = lambda path: os._exit(9); "  # dies when the data is written, before it has its name
        "local.LocalStore(sys.argv[1]).put_file_if_absent('a', Path(sys.argv[1], 'source'))"
    )
    (tmp_path / "source").write_bytes(b"1")
    assert subprocess.run((sys.executable, "-c", code, tmp_path), check=False).returncode == 9
    store = LocalStore(tmp_path)
    assert len(list(tmp_path.iterdir())) == 2  # the source and what the dead writer left
    assert [info.name for info in store.list()] == ["source"]
    assert not store.exists("a")
    assert store.put_if_absent("a", b"2")

    (left,) = store.leftovers(float("inf"))
    assert left.size_bytes == 1
    assert store.leftovers(left.modified, delete=True) == ()  # it is not older than that
    assert store.leftovers(left.modified + 1.0, delete=True) == (left,)
    assert store.leftovers(float("inf")) == ()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "source"]


def test_a_file_that_is_stored_is_not_copied_again(tmp_path: Path) -> None:
    store = LocalStore(tmp_path / "store")
    (tmp_path / "file").write_bytes(bytes(100_000))
    assert store.put_file_if_absent("a", tmp_path / "file") is True
    with full_disk():
        assert store.put_file_if_absent("a", tmp_path / "file") is False
        with pytest.raises(StoreError, match=r"object b cannot be created in store .*: File too large"):
            store.put_file_if_absent("b", tmp_path / "file")
    assert [path.name for path in (tmp_path / "store").iterdir()] == ["a"]


def test_a_read_only_file_system_is_named_with_what_to_do(tmp_path: Path) -> None:
    store = LocalStore(tmp_path / "store")
    store.put("a/b", b"1")
    (tmp_path / "store" / "a" / ".tmp-left").write_bytes(b"")
    (tmp_path / "file").write_bytes(b"2")
    advice = "that file system is mounted read-only, so mount it for writing, or use another folder"
    writes: list[tuple[str, Callable[[], object]]] = [
        ("a/c", lambda: store.put("a/c", b"1")),
        ("d/e", lambda: store.put_if_absent("d/e", b"1")),
        ("a/c", lambda: store.put_file_if_absent("a/c", tmp_path / "file")),
        ("a/b", lambda: store.delete("a/b")),
        ("a/.tmp-left", lambda: store.leftovers(float("inf"), delete=True)),
    ]
    with read_only(tmp_path / "store"):
        assert store.get("a/b") == b"1"
        for name, write in writes:
            with pytest.raises(StoreError) as refused:
                write()
            sentence = str(refused.value)
            assert sentence.endswith(f"Read-only file system; {advice}")
            assert name in sentence
            assert store.url in sentence
    assert [info.name for info in store.list()] == ["a/b"]


CALL_AND_PRINT = """
import sys
from pathlib import Path
from dpr.errors import StoreError
from dpr.store import LocalStore
folder, file, call = sys.argv[1:]
try:
    print(repr(eval(call, {"store": LocalStore(folder), "file": Path(file)})))
except StoreError as error:
    print(type(error).__name__, error)
"""
ADVICE = "; give this user access to it, or run as one who has it"
READS = ["store.get('a/b')", "store.get_range('a/b', 0, 1)", "store.fetch('a/b', file.with_name('copy'))"]
STATUS = ["store.size('a/b')", "store.exists('a/b')"]
LISTS = ["list(store.list())", "list(store.list('a/'))", "store.leftovers(float('inf'))"]
WRITES = [
    "store.put('a/c', b'1')",
    "store.put_if_absent('a/c', b'1')",
    "store.put_file_if_absent('a/c', file)",
    "store.put('a/d/e', b'1')",
    "store.delete('a/b')",
]


@pytest.mark.slow
class TestRights:
    """A user without the rights gets one sentence from every method, and no PermissionError."""

    @pytest.fixture
    def folder(self) -> Iterator[Path]:
        with public_folder() as folder:
            store = LocalStore(folder / "store")
            store.put("a/b", b"1")
            (folder / "store" / "a" / ".tmp-left").write_bytes(b"")
            (folder / "file").write_bytes(b"2")
            (folder / "writable").mkdir()
            (folder / "writable").chmod(0o777)
            yield folder

    def outcome(self, folder: Path, call: str) -> str:
        file = folder / "writable" / "file"
        if not file.exists():
            file.write_bytes(b"2")
        return run_unprivileged(CALL_AND_PRINT, folder / "store", file, call)

    def check_denied(self, folder: Path, call: str) -> None:
        outcome = self.outcome(folder, call)
        assert outcome.startswith("StoreError ")
        assert "Permission denied" in outcome
        assert outcome.endswith(ADVICE)
        assert str(folder) in outcome
        assert "\n" not in outcome
        assert ". " not in outcome

    @pytest.mark.parametrize("call", [*READS, *STATUS, *LISTS, *WRITES, "store.leftovers(float('inf'), delete=True)"])
    def test_a_folder_that_is_closed(self, folder: Path, call: str) -> None:
        (folder / "store" / "a").chmod(0)
        self.check_denied(folder, call)

    @pytest.mark.parametrize("call", [*READS, *STATUS, *LISTS, *WRITES])
    def test_a_folder_that_can_be_listed_but_not_entered(self, folder: Path, call: str) -> None:
        (folder / "store" / "a").chmod(0o444)
        self.check_denied(folder, call)

    @pytest.mark.parametrize("call", LISTS)
    def test_a_folder_that_can_be_entered_but_not_listed(self, folder: Path, call: str) -> None:
        (folder / "store" / "a").chmod(0o311)
        self.check_denied(folder, call)
        assert self.outcome(folder, "store.get('a/b')") == "b'1'"

    @pytest.mark.parametrize("call", [*WRITES, "store.leftovers(float('inf'), delete=True)"])
    def test_a_folder_that_cannot_be_written(self, folder: Path, call: str) -> None:
        (folder / "store" / "a").chmod(0o555)
        self.check_denied(folder, call)
        assert sorted(path.name for path in (folder / "store" / "a").iterdir()) == [".tmp-left", "b"]
        assert self.outcome(folder, "store.delete('a/none')") == "None"
        assert self.outcome(folder, "store.put_file_if_absent('a/b', file)") == "False"

    @pytest.mark.parametrize("call", READS)
    def test_an_object_that_cannot_be_read(self, folder: Path, call: str) -> None:
        (folder / "store" / "a" / "b").chmod(0)
        self.check_denied(folder, call)
        assert self.outcome(folder, "store.size('a/b')") == "1"

    def test_a_store_below_a_closed_folder_cannot_be_opened(self, folder: Path) -> None:
        folder.chmod(0)
        outcome = run_unprivileged(CALL_AND_PRINT, folder / "store", folder / "file", "store.url")
        assert outcome == f"StoreError store {str(folder / 'store')!r} cannot be opened (Permission denied){ADVICE}"

    @pytest.mark.parametrize(
        ("call", "path"),
        [
            ("store.put_file_if_absent('c', file.parents[1] / 'closed' / 'file')", "closed/file"),
            ("store.put_file_if_absent('c', file.parents[1] / 'secret')", "secret"),
            ("store.fetch('a/b', file.parents[1] / 'closed' / 'copy')", "closed/copy"),
            ("store.fetch('a/b', file.parents[1] / 'copy')", "copy"),
        ],
    )
    def test_local_files_that_may_not_be_used(self, folder: Path, call: str, path: str) -> None:
        (folder / "closed").mkdir(mode=0)
        (folder / "secret").touch(mode=0)
        folder.chmod(0o555)
        self.check_denied(folder, call)
        assert str(folder / path) in self.outcome(folder, call)


def test_a_store_that_is_not_there_yet_is_empty(tmp_path: Path) -> None:
    store = open_store(str(tmp_path / "new"))
    assert list(store.list()) == []
    assert not store.exists("a")
    assert list(tmp_path.iterdir()) == []
    store.put("a", b"")
    assert [info.name for info in store.list()] == ["a"]


def test_what_is_no_store(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(StoreError, match="is a file"):
        open_store(str(tmp_path / "file"))
    with pytest.raises(StoreError, match="lies below one"):
        open_store(str(tmp_path / "file" / "store"))
    with pytest.raises(StoreError, match="scheme 'gs'"):
        open_store("gs://bucket")


@pytest.mark.parametrize("folder", ["~no-such-user/store", "a\0b", "x" * 300])
def test_folders_that_no_system_has(folder: str) -> None:
    with pytest.raises(StoreError, match="cannot be opened") as caught:
        open_store(folder)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("below", ["", "/store", "/a/b"])
def test_a_link_to_a_disk_that_is_not_mounted_is_one_sentence(tmp_path: Path, below: str) -> None:
    """To a reader, its store would be one without snapshots, and the next run would fail in other words."""
    (tmp_path / "link").symlink_to(tmp_path / "disk")
    with pytest.raises(StoreError) as refused:
        LocalStore(f"{tmp_path}/link{below}")
    assert str(refused.value) == (
        f"store {tmp_path}/link{below} cannot be opened: {tmp_path}/link is a link to {tmp_path}/disk, which is not "
        "there; mount or create that, or correct the link"
    )
    (tmp_path / "disk").mkdir()
    assert LocalStore(f"{tmp_path}/link{below}").put_if_absent("a", b"1")
