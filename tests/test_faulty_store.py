"""FaultyStore fails at the given call, before or after its effect, and is otherwise the store that it wraps."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from dpr.errors import StoreError
from dpr.store import LocalStore, Store
from tests.faulty_store import FailureMode, FaultyStore


def work(store: Store, folder: Path) -> list[object]:
    """One call of every method, each with an effect or a result of its own."""
    (folder / "file").write_bytes(b"of a file")
    store.put("a", b"12345")
    results: list[object] = [store.put_file_if_absent("b", folder / "file")]
    results += [store.put_if_absent("c", b"c"), store.put_if_absent("c", b"d")]
    store.fetch("b", folder / "copy")
    results += [store.get("a"), store.get_range("a", 1, 2), store.size("a"), store.exists("x")]
    results += [info.name for info in store.list()]
    results += [store.leftovers(0.0)]
    store.delete("a")
    return results


EXPECTED = [True, True, False, b"12345", b"23", 5, False, "a", "b", "c", ()]
CALLS = 12


def test_without_a_fault_it_is_the_store_itself(tmp_path: Path) -> None:
    store = FaultyStore(LocalStore(tmp_path / "store"), fail_at=CALLS + 1)
    assert work(store, tmp_path) == EXPECTED
    assert store.calls == CALLS
    assert store.url == str(tmp_path / "store")
    assert store.local_path("b") == tmp_path / "store" / "b"
    assert sorted(path.name for path in (tmp_path / "store").iterdir()) == ["b", "c"]


@pytest.mark.parametrize("mode", ["before", "after"])
@pytest.mark.parametrize("fail_at", range(1, CALLS + 1))
def test_each_call_can_fail(tmp_path: Path, fail_at: int, mode: FailureMode) -> None:
    store = FaultyStore(LocalStore(tmp_path / "store"), fail_at, mode)
    with pytest.raises(StoreError, match="failed on purpose"):
        work(store, tmp_path)
    assert store.calls == fail_at


@pytest.mark.parametrize(
    ("call", "took_effect"),
    [
        (lambda store, _: store.put("new", b"1"), lambda names: "new" in names),
        (lambda store, path: store.put_file_if_absent("new", path), lambda names: "new" in names),
        (lambda store, _: store.put_if_absent("new", b"1"), lambda names: "new" in names),
        (lambda store, _: store.delete("old"), lambda names: "old" not in names),
    ],
)
def test_mode_says_whether_it_took_effect(
    tmp_path: Path, call: Callable[..., object], took_effect: Callable[[list[str]], bool]
) -> None:
    (tmp_path / "file").write_bytes(b"1")
    for mode, expected in (("before", False), ("after", True)):
        inner = LocalStore(tmp_path / mode)
        inner.put("old", b"0")
        with pytest.raises(StoreError):
            call(FaultyStore(inner, 1, mode), tmp_path / "file")  # type: ignore[arg-type]
        assert took_effect([info.name for info in inner.list()]) is expected


def test_one_call_fails_among_many_threads(tmp_path: Path) -> None:
    store = FaultyStore(LocalStore(tmp_path), fail_at=50)

    def fails(number: int) -> bool:
        try:
            store.put(str(number), b"")
        except StoreError:
            return True
        return False

    with ThreadPoolExecutor(8) as pool:
        assert sum(pool.map(fails, range(100))) == 1
    assert len(list(tmp_path.iterdir())) == 99
