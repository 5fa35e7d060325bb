"""The readers on a real corpus in BEIR's layout, where it is at hand."""

import gzip
import json
import os
from pathlib import Path

import pytest

from tests.corpus.reading import read

DATA = Path(os.environ.get("DPR_TEST_DATA") or Path(__file__).resolve().parents[3] / "shared" / "data")


def test_every_passage_of_squad_is_read(tmp_path: Path) -> None:
    folder = DATA / "squad"
    if not folder.is_dir():
        pytest.skip(f"no {folder}; set DPR_TEST_DATA to the folder with the test data")
    lines = gzip.decompress((folder / "corpus.jsonl.gz").read_bytes())
    (tmp_path / "corpus.jsonl").write_bytes(lines)
    expected = [json.loads(line) for line in lines.decode().split("\n") if line]
    assert len(expected) == 20_958
    for path in (folder, tmp_path):
        found = [row.passage for row in read(path, slice_bytes=1_000_000)]
        assert found == [(one["_id"], one["title"], one["text"]) for one in expected]
