"""Disks that fill up while temporary files, copies and cached files are written."""

import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dpr.errors import DprError, RoomError, StoreError
from dpr.formats.quarantine import QuarantinedRow, write_quarantine
from dpr.formats.segment import segment_schema, write_segment
from dpr.stages.find_truth import write_truth
from dpr.store import LocalStore
from dpr.store.cache import Cache
from dpr.store.temporary import temporary_folder
from tests.disk import fill_disk, full_disk, small_disk

ROOT = Path(__file__).resolve().parents[2]
SIZE = 1 << 20
NOISE = np.random.default_rng(0).bytes(2 * SIZE)


def texts() -> pa.Table:
    """Passages that do not compress."""
    rows = [NOISE[at : at + 1000].decode("latin-1") for at in range(0, len(NOISE), 1000)]
    hashes = [NOISE[at : at + 16] for at in range(len(rows))]
    return pa.table([rows, rows, rows, hashes, hashes], names=segment_schema(2).names[:-1])


def quarantine(path: Path) -> None:
    write_quarantine(path, (QuarantinedRow("file", at, "reason", NOISE[at:][:60_000]) for at in range(0, SIZE, 60_000)))


def truth(path: Path) -> None:
    shape = 500, 200
    write_truth(path, np.random.default_rng(0).normal(size=shape).astype(np.float32), np.zeros(shape, np.int64))


def segment(path: Path) -> None:
    table = texts()
    write_segment(path, table, np.zeros((table.num_rows, 2), np.float16), "e" * 16)


def rows_in_steps(path: Path) -> None:
    """Write as the scan does: a writer that is closed by its `with`."""
    table = pa.table({"raw": [NOISE]})
    with pq.ParquetWriter(path, table.schema) as writer:
        writer.write_table(table)


WRITERS = [quarantine, truth, segment, rows_in_steps, lambda path: path.write_bytes(NOISE)]


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A disk with room for 60 KB."""
    with small_disk(tmp_path / "disk", SIZE) as folder:
        (folder / "other").write_bytes(bytes(SIZE - 60_000))
        yield folder


@pytest.mark.parametrize("write", WRITERS)
def test_a_temporary_file_that_finds_no_room_gives_one_sentence(
    disk: Path, write: Callable[[Path], object], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(disk))
    with pytest.raises(RoomError) as caught, temporary_folder() as folder:
        write(folder / "file.parquet")
    assert str(caught.value) == (
        f"files in {disk} cannot be written (No space left on device); free disk space, or set TMPDIR to a folder of a "
        "larger disk, and start again"
    )
    assert [path.name for path in disk.iterdir()] == ["other"]


@pytest.mark.parametrize("write", WRITERS)
def test_a_file_that_may_not_grow_gives_one_sentence(write: Callable[[Path], object]) -> None:
    with pytest.raises(RoomError, match=r"files in \S+ cannot be written \(File too large\); "):  # noqa: SIM117
        with temporary_folder() as folder, full_disk():
            write(folder / "file.parquet")


def test_other_errors_pass() -> None:
    with pytest.raises(FileNotFoundError), temporary_folder() as folder:
        (folder / "none" / "file").write_bytes(b"")
    assert not folder.exists()


def test_without_any_folder_for_temporary_files_one_sentence_says_so(disk: Path) -> None:
    fill_disk(disk / "all")
    code = (
        "import tempfile\nfrom dpr.errors import RoomError\nfrom dpr.store.temporary import temporary_folder\n"
        f"tempfile._candidate_tempdir_list = lambda: [{str(disk)!r}]\n"
        "try:\n    temporary_folder().__enter__()\nexcept RoomError as error:\n    print(error)"
    )
    found = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert re.fullmatch(r"there is no folder for temporary files \(No usable .*\); free disk .*\n", found.stdout)


def copied_to(disk: Path, store: LocalStore) -> None:
    store.fetch("a", disk / "copy")


def stored_in(disk: Path, store: LocalStore) -> None:
    LocalStore(disk / "store").put_file_if_absent("b", store.local_path("a"))


def cached_in(disk: Path, store: LocalStore) -> None:  # noqa: ARG001
    Cache(disk / "cache", SIZE).fetch("key", lambda path: path.write_bytes(NOISE) and None)


def fetched_into(disk: Path, store: LocalStore) -> None:
    Cache(disk / "cache", SIZE).fetch("key", lambda path: store.fetch("a", path))


@pytest.mark.parametrize(
    ("write", "kind", "message"),
    [
        (
            copied_to,
            StoreError,
            "a of store .* cannot be copied to .*disk/copy .*; free disk space, or set TMPDIR .*",
        ),
        (stored_in, StoreError, "object b cannot be created in store .*disk/store: .*; free disk space there, and .*"),
        (cached_in, RoomError, "files in .*disk/cache cannot be written .*; free disk space, or set DPR_CACHE to .*"),
        (fetched_into, StoreError, "a of store .* cannot be copied to .*disk/cache.*, and set DPR_CACHE to .*"),
    ],
)
def test_stores_and_the_cache_say_what_to_do(
    tmp_path: Path, disk: Path, write: Callable[[Path, LocalStore], None], kind: type[DprError], message: str
) -> None:
    store = LocalStore(tmp_path / "store")
    store.put("a", NOISE)
    with pytest.raises(kind, match=message) as caught:
        write(disk, store)
    assert "No space left on device" in str(caught.value)
    assert not [path for path in disk.rglob("*") if path.is_file() and path.name != "other" and path.stat().st_size]


def test_there_is_no_other_way_to_make_temporary_files() -> None:
    """Else a full disk would end in a traceback again."""
    using = {path.name for path in (ROOT / "dpr").rglob("*.py") if "import tempfile" in path.read_text()}
    assert using <= {"temporary.py", "room.py"}
