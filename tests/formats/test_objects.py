"""Stored objects: written once under the digest of their bytes, and never read if they are not those bytes."""

import hashlib
import os
import tempfile
from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from dpr.errors import IntegrityError, MissingObjectError, StoreError
from dpr.formats.objects import (
    fetch_into,
    fetch_object,
    file_sha256,
    open_parts,
    open_whole,
    put_object,
    read_object,
    verify_bytes,
)
from dpr.formats.records import ObjectRef
from dpr.store import LocalStore, Store
from tests.formats.samples import DAMAGE, RemoteStore, cut_short, lengthen, passages
from tests.store.together import run_together

DATA = bytes(range(256)) * 40


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("DPR_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def ref(store: LocalStore, tmp_path: Path) -> ObjectRef:
    path = tmp_path / "made.bin"
    path.write_bytes(DATA)
    return put_object(store, "things/thing", path)


def where_it_lies(store: Store, ref: ObjectRef) -> Path:
    return Path(store.url, ref.name)


def test_the_name_carries_the_digest_of_the_bytes(store: LocalStore, ref: ObjectRef, tmp_path: Path) -> None:
    sha256 = hashlib.sha256(DATA).hexdigest()
    assert ref == ObjectRef(name=f"things/thing-{sha256[:32]}.bin", size_bytes=len(DATA), sha256=sha256)
    assert file_sha256(tmp_path / "made.bin") == sha256
    assert store.get(ref.name) == DATA


def test_the_same_bytes_are_stored_once(store: LocalStore, ref: ObjectRef, tmp_path: Path) -> None:
    before = where_it_lies(store, ref).stat()
    assert put_object(store, "things/thing", tmp_path / "made.bin") == ref
    after = where_it_lies(store, ref).stat()
    assert (after.st_ino, after.st_mtime_ns) == (before.st_ino, before.st_mtime_ns)


def test_a_second_writer_of_other_bytes_changes_nothing(store: LocalStore, ref: ObjectRef, tmp_path: Path) -> None:
    (tmp_path / "other.bin").write_bytes(DATA[::-1])
    other = put_object(store, "things/thing", tmp_path / "other.bin")
    assert other.name != ref.name
    assert (store.get(ref.name), store.get(other.name)) == (DATA, DATA[::-1])


RACE = """
from pathlib import Path
from dpr.formats.objects import put_object
from dpr.store import LocalStore

for number in range(100):
    path = Path(sys.argv[1], f"{number}.bin")
    print(put_object(LocalStore(Path(sys.argv[1], "store")), "a/b", path).to_bytes().decode())
"""


@pytest.mark.slow
def test_processes_that_put_the_same_bytes_store_one_object(tmp_path: Path) -> None:
    for number in range(100):
        (tmp_path / f"{number}.bin").write_bytes(bytes([number]) * 10_000)
    outputs = run_together("import dpr.formats.objects\n", RACE, 3, tmp_path)
    assert outputs[0] == outputs[1] == outputs[2]
    store = LocalStore(tmp_path / "store")
    refs = [ObjectRef.model_validate_json(line) for line in outputs[0].splitlines()]
    assert {info.name for info in store.list()} == {ref.name for ref in refs}
    for number, ref in enumerate(refs):
        assert store.get(ref.name) == bytes([number]) * 10_000


def fetched_into(store: Store, ref: ObjectRef) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        return fetch_into(store, ref, Path(folder)).read_bytes()


PARALLEL_READS: dict[str, Callable[[Store, ObjectRef], bytes]] = {
    "fetch_object": lambda store, ref: fetch_object(store, ref).read_bytes(),
    "read_object": read_object,
    "fetch_into": fetched_into,
    "verify_bytes": lambda store, ref: verify_bytes(store, ref) or store.get(ref.name),
}


@pytest.fixture(params=[LocalStore, RemoteStore])
def either(request: pytest.FixtureRequest, store: LocalStore) -> Store:
    """The same folder as a local store, and as one without local paths."""
    opened: Store = request.param(Path(store.url))
    return opened


@pytest.mark.parametrize("reader", PARALLEL_READS)
@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize("read_before", [False, True])
def test_every_reader_refuses_a_damaged_object(
    either: Store, ref: ObjectRef, reader: str, damage: Callable[[Path], None], read_before: bool
) -> None:
    """Also where this machine has verified the object before, unless it has a copy of its own."""
    if read_before:
        assert PARALLEL_READS[reader](either, ref) == DATA
    damage(where_it_lies(either, ref))
    if read_before and reader == "fetch_object" and isinstance(either, RemoteStore):
        assert PARALLEL_READS[reader](either, ref) == DATA
        return
    with pytest.raises(IntegrityError, match=f"object {ref.name} in .* has (sha256 .*|[0-9]+ bytes), its record says "):
        PARALLEL_READS[reader](either, ref)


@pytest.mark.parametrize("reader", [*PARALLEL_READS, "open_parts", "open_whole"])
def test_every_reader_refuses_what_is_not_there(either: Store, ref: ObjectRef, reader: str) -> None:
    where_it_lies(either, ref).unlink()
    opened = {"open_parts": open_parts, "open_whole": open_whole}
    with pytest.raises(MissingObjectError, match=f"{ref.name}"):
        (opened.get(reader) or PARALLEL_READS[reader])(either, ref)


@pytest.mark.parametrize("damage", [cut_short, lengthen])
def test_what_is_opened_in_parts_has_the_size_recorded(
    either: Store, ref: ObjectRef, damage: Callable[[Path], None]
) -> None:
    damage(where_it_lies(either, ref))
    with pytest.raises(IntegrityError, match=f"bytes, its record says {len(DATA)}"):
        open_parts(either, ref)


def test_parts_of_a_remote_object_are_read_by_range(store: LocalStore, tmp_path: Path) -> None:
    path, table = tmp_path / "table.parquet", passages(60_000)
    pq.write_table(table, path, row_group_size=6_000)
    ref = put_object(store, "t", path)
    remote = RemoteStore(Path(store.url))
    found = pq.ParquetFile(open_parts(remote, ref)).read_row_group(3, columns=["id"])
    assert found.equals(table.select(["id"]).slice(18_000, 6_000))
    assert {method for method, _ in remote.reads} == {"get_range"}
    assert pq.read_table(open_parts(store, ref)).equals(table)


def test_a_remote_object_fetched_into_a_folder_is_not_kept(
    store: LocalStore, ref: ObjectRef, cache: Path, tmp_path: Path
) -> None:
    remote = RemoteStore(Path(store.url))
    path = fetch_into(remote, ref, tmp_path)
    assert (path.parent, path.read_bytes()) == (tmp_path, DATA)
    assert fetch_into(store, ref, tmp_path) == where_it_lies(store, ref)  # a local one stays where it is
    assert not (cache / "entries").exists()


def test_a_small_remote_object_is_opened_in_one_request(store: LocalStore, tmp_path: Path) -> None:
    """The digest also proves the size."""
    path, table = tmp_path / "table.parquet", passages(100)
    pq.write_table(table, path)
    remote, ref = RemoteStore(Path(store.url)), put_object(store, "t", path)
    assert pq.read_table(open_parts(remote, ref)).equals(table)
    assert remote.reads == [("get_range", ref.size_bytes)]


def test_what_the_cache_holds_is_opened_there(store: LocalStore, ref: ObjectRef, cache: Path) -> None:
    remote = RemoteStore(Path(store.url))
    assert open_whole(remote, ref) == cached_copy(cache)
    assert open_parts(remote, ref) == cached_copy(cache)
    assert remote.reads == [("fetch", len(DATA))]
    assert open_whole(store, ref) == where_it_lies(store, ref)


def cached_copy(cache: Path) -> Path:
    (path,) = (cache / "entries").rglob("*.bin")
    return path


def test_a_remote_object_is_fetched_once(store: LocalStore, ref: ObjectRef, cache: Path) -> None:
    remote = RemoteStore(Path(store.url))
    paths = [fetch_object(remote, ref) for _ in range(3)]
    assert set(paths) == {cached_copy(cache)}
    assert remote.reads == [("fetch", len(DATA))]
    assert fetch_object(store, ref) == where_it_lies(store, ref)  # a local one stays where it is


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_copy_in_the_cache_is_fetched_again(
    store: LocalStore, ref: ObjectRef, cache: Path, damage: Callable[[Path], None]
) -> None:
    remote = RemoteStore(Path(store.url))
    fetch_object(remote, ref)
    damage(cached_copy(cache))
    assert fetch_object(remote, ref).read_bytes() == DATA
    assert remote.reads == 2 * [("fetch", len(DATA))]


@pytest.mark.parametrize("damage", DAMAGE)
def test_nothing_damaged_stays_in_the_cache(
    store: LocalStore, ref: ObjectRef, cache: Path, damage: Callable[[Path], None]
) -> None:
    remote, stored = RemoteStore(Path(store.url)), where_it_lies(store, ref)
    damage(stored)
    with pytest.raises(IntegrityError, match="its record says"):
        fetch_object(remote, ref)
    assert not list((cache / "entries").rglob("*.bin"))
    stored.write_bytes(DATA)  # the right bytes are restored
    assert fetch_object(remote, ref).read_bytes() == DATA


def test_verifying_again_trusts_no_memory(store: LocalStore, ref: ObjectRef) -> None:
    """A file whose bytes changed behind an unchanged size, time and inode is found by a reader of all of it."""
    path = where_it_lies(store, ref)
    os.utime(path, ns=(0, 10**18))
    fetch_object(store, ref)
    with path.open("r+b") as file:
        file.write(b"?")
    os.utime(path, ns=(0, 10**18))
    assert fetch_object(store, ref) == path  # remembered
    with pytest.raises(IntegrityError, match="has sha256"):
        verify_bytes(store, ref)


def test_a_name_outside_the_store_reaches_no_file(store: LocalStore, tmp_path: Path) -> None:
    """The pattern of names is the first guard, the store is the second."""
    (tmp_path / "secret").write_bytes(DATA)
    store.put("inside", b"")  # below a folder that is not there, the system would find no ".."
    assert Path(store.url, "../secret").read_bytes() == DATA
    for opened in (store, RemoteStore(Path(store.url))):
        ref = ObjectRef.model_construct(name="../secret", size_bytes=len(DATA), sha256=hashlib.sha256(DATA).hexdigest())
        for read in PARALLEL_READS.values():
            with pytest.raises(StoreError, match=r"object name '\.\./secret' is not a relative path"):
                read(opened, ref)


def test_a_copy_is_in_the_cache_only_once_it_is_verified(
    store: LocalStore, ref: ObjectRef, monkeypatch: pytest.MonkeyPatch
) -> None:
    remote = RemoteStore(Path(store.url))

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(hashlib, "file_digest", killed)
        with pytest.raises(KeyboardInterrupt):
            fetch_object(remote, ref)
    assert not isinstance(open_parts(remote, ref), Path)
    fetch_object(remote, ref)
    assert isinstance(open_parts(remote, ref), Path)
