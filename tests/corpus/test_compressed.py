"""Compressed files, packed by the libraries of others, against the same files as they are."""

import base64
import bz2
import gzip
import json
import lzma
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import lz4.frame
import pytest
import zstandard

from dpr.corpus.slices import plan_slices
from dpr.errors import CorpusError
from dpr.recipe import CorpusConfig
from tests.corpus.reading import read

PACKED: dict[str, Callable[[bytes], bytes]] = {
    "gz": gzip.compress,
    "bz2": lambda data: bz2.compress(data, 1),
    "xz": lambda data: lzma.compress(data, preset=0),
    "zst": zstandard.compress,
    "lz4": lz4.frame.compress,
}


def lines_of(suffix: str, rows: int) -> bytes:
    noise = random.Random(5)  # it does not compress well, so that long files are longer than what planning reads
    texts = [base64.b64encode(noise.randbytes(300)).decode() for _ in range(rows)]
    if suffix == "jsonl":
        return b"".join(json.dumps({"id": n, "title": "é", "text": t}).encode() + b"\n" for n, t in enumerate(texts))
    if suffix == "json":
        return json.dumps([{"id": n, "title": "é", "text": t} for n, t in enumerate(texts)], indent=1).encode()
    between = "\t" if suffix == "tsv" else ","
    lines = [["id", "text", "title"], *([str(number), text, "é"] for number, text in enumerate(texts))]
    return "".join(between.join(line) + "\n" for line in lines).encode()


@pytest.mark.parametrize("packing", PACKED)
@pytest.mark.parametrize("suffix", ["jsonl", "json", "tsv", "csv"])
def test_packed_files_read_as_plain_ones_whatever_their_names(tmp_path: Path, suffix: str, packing: str) -> None:
    data = lines_of(suffix, 300)
    plain, packed, unnamed = tmp_path / f"c.{suffix}", tmp_path / f"c.{suffix}.{packing}", tmp_path / "part-00000"
    plain.write_bytes(data)
    expected = [(row.passage, row.position, row.raw) for row in read(plain)]
    assert len(expected) == 300
    # the second member begins within a line
    packed.write_bytes(PACKED[packing](data[:333]) + PACKED[packing](data[333:]))
    unnamed.write_bytes(packed.read_bytes())
    for path in (packed, unnamed):
        assert [(row.passage, row.position, row.raw) for row in read(path)] == expected


@pytest.mark.slow
@pytest.mark.parametrize("packing", PACKED)
def test_damage_is_an_error_and_never_a_smaller_corpus(tmp_path: Path, packing: str) -> None:
    data = PACKED[packing](lines_of("jsonl", 4_500))
    path = tmp_path / f"c.jsonl.{packing}"
    path.write_bytes(data)
    assert len(data) > 2**20, "more than planning reads"
    assert len(plan_slices(CorpusConfig(path=str(path))).slices) == 1
    path.write_bytes(data[:-20])
    with pytest.raises(CorpusError, match=rf"c\.jsonl\.{packing} is damaged or cut short .*; fetch it again"):
        read(path)


def test_forms_that_only_some_tools_write_are_read(tmp_path: Path) -> None:
    data = lines_of("jsonl", 20)
    skipped = b"\x50\x2a\x4d\x18" + (4).to_bytes(4, "little") + b"size"  # pzstd begins with such a frame
    forms = {
        "a.zst": skipped + skipped + zstandard.compress(data) + skipped,
        "a.lz4": skipped + lz4.frame.compress(data),
        "a.lzma": lzma.compress(data, lzma.FORMAT_ALONE),
    }
    (tmp_path / "a.jsonl").write_bytes(data)
    expected = [row.passage for row in read(tmp_path / "a.jsonl")]
    for name, packed in forms.items():
        (tmp_path / name).write_bytes(packed)
        assert [row.passage for row in read(tmp_path / name)] == expected, name


@pytest.mark.parametrize("packing", [bytes, gzip.compress, zstandard.compress])
@pytest.mark.parametrize("kind", ["tar", "zip"])
def test_an_archive_is_named_and_its_bytes_are_not_taken_for_rows(
    tmp_path: Path, kind: str, packing: Callable[[bytes], bytes]
) -> None:
    """Every line would be read, except the first one of each file in it, which follows a header."""
    folder = tmp_path / "in"
    folder.mkdir()
    (folder / "a.jsonl").write_bytes(lines_of("jsonl", 20))
    archive = Path(shutil.make_archive(str(tmp_path / "a"), kind, folder))
    path = tmp_path / "c.jsonl"
    path.write_bytes(packing(archive.read_bytes()))
    with pytest.raises(CorpusError, match=rf"c\.jsonl is a {kind} archive.*; unpack it, and name the folder"):
        read(path)


def test_a_file_of_one_row_longer_than_what_planning_unpacks_is_not_taken_for_an_empty_one(tmp_path: Path) -> None:
    noise = base64.b64encode(random.Random(5).randbytes(2**20))
    path = tmp_path / "c.tsv.gz"
    path.write_bytes(gzip.compress(b"id\ttext\n1\t" + noise + b"\n", 0))  # a MiB of it unpacks to less than a MiB
    (row,) = read(path, max_passage_chars=2**21)
    assert row.passage is not None
    assert row.passage.text == noise.decode()
