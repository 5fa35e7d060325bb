"""Passages of a scanned slice are read again from wherever they are: what the scan stored, or the corpus."""

import json
import os
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dpr.corpus.slices import plan_slices
from dpr.errors import CorpusError
from dpr.fingerprint import content_hash, passage_key
from dpr.formats.objects import put_object
from dpr.recipe import CorpusConfig
from dpr.stages.passages import SCHEMA, TextSource, passages_at
from dpr.store import LocalStore

ROWS = 12
NAMES = ["corpus.jsonl", "corpus.jsonl.gz", "corpus.parquet", "corpus.tsv"]


class Scanned:
    """A corpus file of one slice, of which a scan has stored some passages."""

    def __init__(self, folder: Path, name: str, stored: list[int]) -> None:
        """Write the corpus, and store the passages of these rows."""
        self.store, self.path = LocalStore(folder / "store"), folder / name
        self.positions = self._write()
        self.config = CorpusConfig(path=str(self.path))
        (slice_,) = plan_slices(self.config).slices
        passages = None
        if stored:
            table = pa.Table.from_pylist([self.row(row) for row in stored], schema=SCHEMA)
            pq.write_table(table, folder / "new.parquet", row_group_size=3)
            passages = put_object(self.store, "scans/e/s.new", folder / "new.parquet")
        self.source = TextSource(0, slice_, passages)

    def row(self, row: int) -> dict[str, object]:
        """What a row of the corpus holds."""
        passage = (f"id {row}", f"title {row}", f"text {row} of {'some ' * row}length")
        return {
            "id": passage[0],
            "title": passage[1],
            "text": passage[2],
            "key": passage_key(*passage),
            "content_hash": content_hash(*passage[1:]),
            "position": self.positions[row],
        }

    def read(self, rows: list[int], columns: list[str]) -> pa.Table:
        positions = np.array([self.positions[row] for row in rows], np.int64)
        return passages_at(self.store, self.config, self.source, positions, columns)

    def _write(self) -> list[int]:
        self.positions = [0] * ROWS
        rows = [{name: str(self.row(row)[name]) for name in ("id", "title", "text")} for row in range(ROWS)]
        if self.path.suffix == ".parquet":
            pq.write_table(pa.Table.from_pylist(rows), self.path, row_group_size=5)
            return list(range(ROWS))
        if self.path.suffix == ".tsv":
            lines = [f"{row['id']}\t{row['text']}\t{row['title']}\n" for row in rows]
            head = "id\ttext\ttitle\n"
        else:
            lines, head = [json.dumps(row) + "\n" for row in rows], ""
        text = (head + "".join(lines)).encode()
        if self.path.suffix == ".gz":
            import gzip

            text = gzip.compress(text)
        self.path.write_bytes(text)
        return [len(head) + sum(map(len, lines[:row])) for row in range(ROWS)]


some_rows = st.sets(st.integers(0, ROWS - 1)).map(sorted)


@pytest.mark.slow
@settings(max_examples=60, deadline=None)
@given(
    name=st.sampled_from(NAMES),
    stored=some_rows,
    rows=some_rows,
    columns=st.lists(st.sampled_from(SCHEMA.names), min_size=1, unique=True),
)
def test_passages_are_those_of_the_corpus_whichever_of_them_are_stored(
    tmp_path_factory: pytest.TempPathFactory, name: str, stored: list[int], rows: list[int], columns: list[str]
) -> None:
    scanned = Scanned(tmp_path_factory.mktemp("scanned"), name, stored)
    table = scanned.read(rows, columns)
    assert table.to_pylist() == [{column: scanned.row(row)[column] for column in columns} for row in rows]
    assert table.schema.types == [SCHEMA.field(column).type for column in columns]


def test_the_corpus_is_opened_only_for_what_is_not_stored(tmp_path: Path) -> None:
    scanned = Scanned(tmp_path, "corpus.jsonl", [2, 5, 7])
    scanned.path.unlink()
    assert scanned.read([2, 7], ["text"])["text"].to_pylist() == [scanned.row(2)["text"], scanned.row(7)["text"]]
    with pytest.raises(CorpusError, match=r"corpus\.jsonl is not there"):
        scanned.read([2, 6], ["text"])


def test_stored_passages_that_were_collected_are_read_from_the_corpus(tmp_path: Path) -> None:
    scanned = Scanned(tmp_path, "corpus.jsonl", [2, 5, 7])
    assert scanned.source.passages is not None
    scanned.store.delete(scanned.source.passages.name)
    assert scanned.read([2, 3], ["id"])["id"].to_pylist() == ["id 2", "id 3"]


def test_a_file_that_changed_is_not_read(tmp_path: Path) -> None:
    scanned = Scanned(tmp_path, "corpus.jsonl", [2])
    with scanned.path.open("a") as file:
        file.write("{}\n")
    with pytest.raises(CorpusError, match="changed while it was being scanned"):
        scanned.read([2, 3], ["id"])


def test_a_file_that_changed_in_place_and_shows_no_sign_of_it_is_named(tmp_path: Path) -> None:
    scanned = Scanned(tmp_path, "corpus.jsonl", [2])
    times = scanned.path.stat()
    data = scanned.path.read_bytes()
    scanned.path.write_bytes(data.replace(b'"id": "id 4"', b'"id": "    "'))
    os.utime(scanned.path, ns=(times.st_atime_ns, times.st_mtime_ns))
    with pytest.raises(CorpusError, match=r"gave 1 of 2 passages .* set corpus\.rescan to always, and run again"):
        scanned.read([2, 3, 4], ["id"])
