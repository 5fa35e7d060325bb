"""A folder over a store: what a reader of both sees, and that the store below stays as it was."""

from pathlib import Path

import pytest

from dpr.errors import MissingObjectError
from dpr.store import LocalStore
from dpr.store.overlay import OverlayStore


def test_reads_see_both_and_writes_go_above(tmp_path: Path) -> None:
    below = LocalStore(tmp_path / "below")
    below.put("a/one", b"old")
    below.put("a/two", b"second")
    store = OverlayStore(tmp_path / "above", below)
    store.put("a/one", b"newer")
    (tmp_path / "file").write_bytes(b"third")
    assert (
        store.put_file_if_absent("a/three", tmp_path / "file"),
        store.put_file_if_absent("a/two", tmp_path / "file"),
    ) == (
        True,
        False,
    )
    assert (store.put_if_absent("a/two", b"x"), store.put_if_absent("b", b"fourth")) == (False, True)

    assert [(info.name, info.size_bytes) for info in store.list("a/")] == [("a/one", 5), ("a/three", 5), ("a/two", 6)]
    assert [store.get(name) for name in ("a/one", "a/two", "b")] == [b"newer", b"second", b"fourth"]
    assert store.get_range("a/two", 2, 3) == b"con"
    assert store.size("a/one") == 5
    assert store.local_path("a/two") == tmp_path / "below" / "a" / "two"
    store.fetch("a/three", tmp_path / "fetched")
    assert (tmp_path / "fetched").read_bytes() == b"third"
    store.delete("a/one")
    assert store.get("a/one") == b"old"
    with pytest.raises(MissingObjectError):
        store.get("c")
    assert [info.name for info in below.list()] == ["a/one", "a/two"]
