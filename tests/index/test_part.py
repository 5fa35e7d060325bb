"""Parts: the codes that FAISS's own add gives, in a file that is read by ranges."""

import json
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import faiss
import numpy as np
import numpy.typing as npt
import pytest
from safetensors.numpy import load_file, save_file

from dpr.errors import IndexBuildError, IntegrityError
from dpr.index.choose import choose
from dpr.index.coding import build_part
from dpr.index.part import Part, PartFile, write_part
from dpr.index.training import train
from dpr.recipe_index import IndexConfig

Vectors = npt.NDArray[np.float16]
FullDisk = Callable[[], AbstractContextManager[None]]
CODEBOOK = "c0de" * 16


@pytest.fixture(scope="module")
def codebook(vectors_ND: Vectors) -> faiss.Index:
    plan = choose(IndexConfig(factory="IVF300,PQ4x4"), 1500, 16)  # list numbers of two bytes
    return train(vectors_ND.astype(np.float32), plan, seed=1)


@pytest.fixture(scope="module")
def part(codebook: faiss.Index, vectors_ND: Vectors) -> Part:
    return build_part(codebook, vectors_ND)


def test_a_part_holds_what_faiss_adds(codebook: faiss.Index, part: Part, vectors_ND: Vectors) -> None:
    index = faiss.clone_index(codebook)
    index.add(vectors_ND.astype(np.float32))
    start = 0
    for number in range(index.nlist):
        size = index.invlists.list_size(number)
        assert part.list_sizes_L[number] == size
        if size:
            ids = faiss.rev_swig_ptr(index.invlists.get_ids(number), size)
            codes = faiss.rev_swig_ptr(index.invlists.get_codes(number), size * index.code_size)
            np.testing.assert_array_equal(part.rows_N[start : start + size], ids)
            np.testing.assert_array_equal(part.codes_NB[start : start + size].reshape(-1), codes)
        start += size
    assert part.ntotal == start == len(vectors_ND)


def test_building_leaves_the_codebook_as_it_is_and_does_not_depend_on_blocks(
    codebook: faiss.Index, part: Part, vectors_ND: Vectors
) -> None:
    before = bytes(faiss.serialize_index(codebook))
    in_blocks = build_part(codebook, vectors_ND, block_rows=400)
    assert bytes(faiss.serialize_index(codebook)) == before
    for found, expected in zip(vars(in_blocks).values(), vars(part).values(), strict=True):
        np.testing.assert_array_equal(found, expected)


def test_a_part_may_be_empty(codebook: faiss.Index, tmp_path: Path) -> None:
    write_part(build_part(codebook, np.empty((0, 16), np.float16)), tmp_path / "part", CODEBOOK)
    assert PartFile(tmp_path / "part", "empty", CODEBOOK).ntotal == 0


def test_any_range_is_read_back(part: Part, tmp_path: Path) -> None:
    path = tmp_path / "part"
    write_part(part, path, CODEBOOK)
    file = PartFile(path, "the part", CODEBOOK)
    assert (file.ntotal, file.code_bytes) == part.codes_NB.shape
    np.testing.assert_array_equal(np.diff(file.list_starts_L), part.list_sizes_L)
    for start, stop in [(0, part.ntotal), (7, 7), (3, 900)]:
        rows_n, codes_nB = np.zeros_like(part.rows_N[start:stop]), np.zeros_like(part.codes_NB[start:stop])
        file.read_into(start, rows_n, codes_nB)
        np.testing.assert_array_equal(rows_n, part.rows_N[start:stop])
        np.testing.assert_array_equal(codes_nB, part.codes_NB[start:stop])
    np.testing.assert_array_equal(file.rows(), part.rows_N)


def test_a_part_is_a_plain_safetensors_file(part: Part, tmp_path: Path) -> None:
    write_part(part, tmp_path / "part", CODEBOOK)
    tensors = load_file(tmp_path / "part")
    np.testing.assert_array_equal(tensors["list_sizes"], part.list_sizes_L)
    np.testing.assert_array_equal(tensors["rows"], part.rows_N)
    np.testing.assert_array_equal(tensors["codes"], part.codes_NB)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_vector_that_is_not_finite_is_refused(value: float, codebook: faiss.Index, vectors_ND: Vectors) -> None:
    spoilt_ND = vectors_ND.copy()
    spoilt_ND[450, 3] = value
    with pytest.raises(IndexBuildError, match=r"1 of 400 vectors of rows 400 and on .* first is row 50"):
        build_part(codebook, spoilt_ND, block_rows=400)


def test_vectors_of_another_width_are_refused(codebook: faiss.Index) -> None:
    with pytest.raises(IndexBuildError, match=r"shape \(3, 8\) and the index takes \(rows, 16\)"):
        build_part(codebook, np.zeros((3, 8), np.float16))


def test_a_graph_has_no_parts(vectors_ND: Vectors) -> None:
    with pytest.raises(IndexBuildError, match="IndexHNSWFlat cannot be built from parts; build it whole"):
        build_part(faiss.index_factory(16, "HNSW8", faiss.METRIC_INNER_PRODUCT), vectors_ND)


def header_only(length: int) -> bytes:
    return length.to_bytes(8, "little") + json.dumps({"rows": {"dtype": "F32"}}).encode()


@pytest.mark.parametrize("content", [b"", b"abc", bytes(100), b"\xff" * 100, header_only(27), header_only(2**40)])
def test_a_file_that_is_no_part_is_refused(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "part").write_bytes(content)
    with pytest.raises(IntegrityError, match="the part of segment 3 is not an index part"):
        PartFile(tmp_path / "part", "the part of segment 3", CODEBOOK)


@pytest.mark.parametrize(
    ("rows", "codes", "sizes", "message"),
    [
        (3, (3, 2), [1, 1], "3 codes, 3 rows and 2 places"),
        (2, (3, 2), [1, 2], "3 codes, 2 rows and 3 places"),
        (3, (3,), [1, 2], "tensor codes has shape .3,., not 2 axes"),
    ],
)
def test_counts_that_differ_are_refused(
    rows: int, codes: tuple[int, ...], sizes: list[int], message: str, tmp_path: Path
) -> None:
    tensors = {
        "rows": np.arange(rows, dtype=np.uint32),
        "codes": np.zeros(codes, np.uint8),
        "list_sizes": np.array(sizes, np.uint32),
    }
    save_file(tensors, tmp_path / "part", {"codebook": CODEBOOK})
    with pytest.raises(IntegrityError, match=message):
        PartFile(tmp_path / "part", "the part", CODEBOOK)


def test_a_part_of_a_codebook_of_other_bytes_is_refused(part: Part, tmp_path: Path) -> None:
    write_part(part, tmp_path / "part", CODEBOOK)
    with pytest.raises(IntegrityError) as raised:
        PartFile(tmp_path / "part", "the part of segment 3", "f" * 64)
    assert str(raised.value) == (
        f"the part of segment 3 was coded with the codebook of SHA-256 {CODEBOOK} and the index has that of "
        f"{'f' * 64}; delete the part's record and run again"
    )
    save_file(load_file(tmp_path / "part"), tmp_path / "unnamed")
    with pytest.raises(IntegrityError, match="the part names no codebook and the index has that of c0de"):
        PartFile(tmp_path / "unnamed", "the part", CODEBOOK)


def test_equal_parts_are_equal_bytes(part: Part, tmp_path: Path) -> None:
    for name in ("first", "second"):
        write_part(part, tmp_path / name, CODEBOOK)
    assert (tmp_path / "first").read_bytes() == (tmp_path / "second").read_bytes()


def test_a_part_that_was_cut_off_is_refused(part: Part, tmp_path: Path) -> None:
    path = tmp_path / "part"
    write_part(part, path, CODEBOOK)
    path.write_bytes(path.read_bytes()[:-1])
    file = PartFile(path, "the part", CODEBOOK)
    np.testing.assert_array_equal(file.rows(), part.rows_N)
    with pytest.raises(IntegrityError, match="the part ends before its codes do"):
        file.read_into(0, np.zeros_like(part.rows_N), np.zeros_like(part.codes_NB))


def test_a_disk_that_fills_up_leaves_no_part(part: Part, tmp_path: Path, full_disk: FullDisk) -> None:
    with full_disk(), pytest.raises(IndexBuildError, match=r"cannot be written: .*; free disk space"):
        write_part(part, tmp_path / "part", CODEBOOK)
    assert not list(tmp_path.iterdir())
