"""Hashes of segments: those of a remote one are read once on a machine, without its texts and vectors."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from dpr.formats.objects import put_object
from dpr.formats.records import ObjectRef
from dpr.formats.segment import write_segment
from dpr.formats.segment_hashes import segment_hashes
from dpr.store import LocalStore
from tests.formats.samples import DAMAGE, RemoteStore, passages

ROWS = 20_000


@pytest.fixture
def ref(store: LocalStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ObjectRef:
    monkeypatch.setenv("DPR_CACHE", str(tmp_path / "cache"))
    path = tmp_path / "segment.parquet"
    write_segment(path, passages(ROWS), np.zeros((ROWS, 256), np.float16), "encoder")
    return put_object(store, "segments/a", path)


@pytest.mark.parametrize("kind", [LocalStore, RemoteStore])
def test_hashes_are_those_of_the_file(store: LocalStore, ref: ObjectRef, kind: type[LocalStore]) -> None:
    table = pq.read_table(Path(store.url, ref.name), columns=["key", "content_hash"])
    for _ in range(2):
        found = segment_hashes(kind(Path(store.url)), ref)
        assert set(found) == {"key", "content_hash"}
        assert all(found[name].to_pylist() == table[name].to_pylist() for name in found)


def test_a_remote_segment_is_read_once_and_in_part(store: LocalStore, ref: ObjectRef) -> None:
    remote = RemoteStore(Path(store.url))
    segment_hashes(remote, ref)
    assert {method for method, _ in remote.reads} == {"get_range"}
    assert len(remote.reads) == 1 + 3  # the footer, and the hashes of each row group
    assert sum(size for _, size in remote.reads) < ref.size_bytes / 8
    remote.reads.clear()
    segment_hashes(remote, ref)
    assert remote.reads == []


def test_a_local_segment_is_not_copied(store: LocalStore, ref: ObjectRef, tmp_path: Path) -> None:
    segment_hashes(store, ref)
    assert not (tmp_path / "cache" / "entries").exists()


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_copy_in_the_cache_is_made_again(
    store: LocalStore, ref: ObjectRef, tmp_path: Path, damage: Callable[[Path], None]
) -> None:
    remote = RemoteStore(Path(store.url))
    before = segment_hashes(remote, ref)
    (kept,) = (tmp_path / "cache" / "entries").rglob("*.parquet")
    damage(kept)
    for _ in range(2):
        found = segment_hashes(remote, ref)
        assert all(found[name].equals(before[name]) for name in ("key", "content_hash"))
