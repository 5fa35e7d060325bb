"""Index files are read as they were written, or refused."""

import re
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import faiss
import numpy as np
import numpy.typing as npt
import pytest

from dpr.errors import IndexBuildError, IntegrityError
from dpr.index.choose import choose
from dpr.index.faiss_file import read_faiss, write_faiss
from dpr.index.training import train
from dpr.recipe_index import IndexConfig

Vectors = npt.NDArray[np.float16]
FullDisk = Callable[[], AbstractContextManager[None]]


@pytest.mark.parametrize("mapped", [False, True])
def test_an_index_file_is_read_as_it_was_written(mapped: bool, tmp_path: Path, vectors_ND: Vectors) -> None:
    index = train(vectors_ND.astype(np.float32), choose(IndexConfig(factory="IVF8,PQ4x4"), 1500, 16), seed=1)
    index.add(vectors_ND.astype(np.float32))
    write_faiss(index, tmp_path / "index")
    found = read_faiss(tmp_path / "index", mapped=mapped)
    question_QD = vectors_ND[:5].astype(np.float32)
    np.testing.assert_array_equal(found.search(question_QD, 7), index.search(question_QD, 7))


@pytest.mark.parametrize("content", [b"", b"not an index", b"IwPQ" + bytes(40)])
def test_a_file_that_is_no_index_is_refused(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "index"
    path.write_bytes(content)
    with pytest.raises(IntegrityError, match=f"{re.escape(str(path))} cannot be read: .*; build it again"):
        read_faiss(path)


def test_a_disk_that_fills_up_leaves_no_index_file(tmp_path: Path, vectors_ND: Vectors, full_disk: FullDisk) -> None:
    index = faiss.IndexFlatIP(16)
    index.add(vectors_ND.astype(np.float32))
    with full_disk(), pytest.raises(IndexBuildError, match=r"cannot be written: .*; free disk space"):
        write_faiss(index, tmp_path / "index")
    assert not list(tmp_path.iterdir())
