"""What is special to folders: clashes of files and folders, crashes, rights; and random histories against a dict."""

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, initialize, invariant, multiple, rule

from dpr.errors import MissingObjectError, StoreError
from dpr.store import LocalStore, open_store

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
    def put_file(self, name: str, data: bytes) -> None:
        (self.folder / "file").write_bytes(data)
        self.store.put_file(name, self.folder / "file")
        self.model[name] = data

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
        lambda: store.put_file(new, tmp_path / "file"),
    ):
        with pytest.raises(StoreError, match="choose another name"):
            call()
    assert [info.name for info in store.list()] == [there]


def test_a_writer_that_dies_leaves_no_object(tmp_path: Path) -> None:
    code = (
        "import os, sys; from pathlib import Path; from dpr.store import local; "
        "local._sync = lambda path: os._exit(9); "  # dies when the data is written, before it has its name
        "local.LocalStore(sys.argv[1]).put_file('a', Path(sys.argv[1], 'source'))"
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


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_unreadable_folders_are_no_empty_listings(tmp_path: Path) -> None:
    store = LocalStore(tmp_path)
    store.put("a/b", b"1")
    (tmp_path / "a").chmod(0)
    try:
        for call in (lambda: list(store.list()), lambda: store.exists("a/b"), lambda: store.put("a/c", b"")):
            with pytest.raises(StoreError, match="Permission denied"):
                call()
    finally:
        (tmp_path / "a").chmod(0o700)


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
    with pytest.raises(StoreError, match="scheme 'gs'"):
        open_store("gs://bucket")
