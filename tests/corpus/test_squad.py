"""The readers on a real corpus in BEIR's layout, if it is there."""

import gzip
import json
from pathlib import Path

from tests.corpus.reading import read
from tests.data import data_folder


def test_every_passage_of_squad_is_read(tmp_path: Path) -> None:
    folder = data_folder("squad")
    lines = gzip.decompress((folder / "corpus.jsonl.gz").read_bytes())
    (tmp_path / "corpus.jsonl").write_bytes(lines)
    expected = [json.loads(line) for line in lines.decode().split("\n") if line]
    assert len(expected) == 20_958
    for path in (folder, tmp_path):
        passages = [row.passage for row in read(path, slice_bytes=1_000_000)]
        assert passages == [(record["_id"], record["title"], record["text"]) for record in expected]
