"""A corpus that changes between planning and the end of reading is an error, in every format."""

import gzip
import os
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dpr.corpus.slices import plan_slices
from dpr.corpus.reading import read_slice
from dpr.errors import CorpusError
from dpr.recipe import CorpusConfig

ROWS = "".join(f'{{"_id": "{n}", "title": "", "text": "passage {n}"}}\n' for n in range(5_000)).encode()


def append(path: Path) -> None:
    with path.open("ab") as file:
        file.write(b"\n")


def shorten(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 1)


def touch(path: Path) -> None:
    os.utime(path, ns=(1, path.stat().st_mtime_ns + 1))


def swap(path: Path) -> None:
    """Another file of the same size takes its place, as most tools write."""
    other = path.with_name("other")
    other.write_bytes(path.read_bytes())
    other.replace(path)


def vanish(path: Path) -> None:
    path.unlink()


NAMES = ["corpus.jsonl", "corpus.jsonl.gz", "corpus.parquet", "corpus.txt"]
CHANGES = [append, shorten, touch, swap, vanish]


@pytest.fixture(params=NAMES)
def path(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    path = tmp_path / str(request.param)
    if path.suffix == ".parquet":
        pq.write_table(pa.table({name: [str(n) for n in range(5_000)] for name in ("id", "title", "text")}), path)
    else:
        path.write_bytes(gzip.compress(ROWS, 1) if path.suffix == ".gz" else ROWS)
    return path


@pytest.mark.parametrize("change", CHANGES)
def test_a_file_that_changed_since_planning_is_not_read(path: Path, change: Callable[[Path], None]) -> None:
    corpus = CorpusConfig(path=str(path))
    (slice_,) = plan_slices(corpus)
    change(path)
    with pytest.raises(CorpusError, match=r"corpus\.\S+ (changed while it was being scanned|is not there)"):
        next(read_slice(slice_, corpus))


# a document is read whole before its first row
@pytest.mark.parametrize("path", NAMES[:3], indirect=True)
@pytest.mark.parametrize("change", CHANGES)
def test_a_file_that_changes_while_it_is_read_is_an_error(path: Path, change: Callable[[Path], None]) -> None:
    corpus = CorpusConfig(path=str(path))
    (slice_,) = plan_slices(corpus)
    rows = read_slice(slice_, corpus)
    next(rows)
    change(path)
    with pytest.raises(CorpusError, match=r"corpus\.\S+ (changed|is not|is damaged)"):
        list(rows)


def test_stopping_early_is_no_error(path: Path) -> None:
    corpus = CorpusConfig(path=str(path))
    (slice_,) = plan_slices(corpus)
    rows = iter(read_slice(slice_, corpus))
    next(rows)
    rows.close()  # type: ignore[attr-defined]
