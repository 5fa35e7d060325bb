"""`dpr init` finds out where id, title and text are, whatever the format and the usual names."""

import io
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
import zstandard

from dpr.operations.first_recipe import first_recipe
from dpr.recipe import Columns, CorpusConfig
from tests.corpus.reading import read

NAMES = ["Year", "Document-ID", "Headline", "Body"]
ROWS = [[str(1990 + n), f"d{n}", f"Title {n}", f"the text of number {n}, which is long enough"] for n in range(3)]


def file_of(kind: str) -> bytes:
    records = [dict(zip(NAMES, row, strict=True)) for row in ROWS]
    lines = "".join(json.dumps(record) + "\n" for record in records).encode()
    table, sink = pa.Table.from_pylist(records), io.BytesIO()
    if kind == "arrow":
        with pa.ipc.new_file(sink, table.schema) as writer:
            writer.write_table(table)
    elif kind == "parquet":
        pq.write_table(table, sink)
    between = {"csv": ";", "tsv": "\t"}.get(kind, "")
    as_text = "\n".join(between.join(row) for row in [NAMES, *ROWS]).encode()
    return {
        "csv": as_text,
        "tsv": as_text,
        "json": json.dumps(records, indent=2).encode(),
        "jsonl": lines,
        "jsonl.zst": zstandard.compress(lines),
    }.get(kind, sink.getvalue())


@pytest.mark.parametrize("kind", ["csv", "tsv", "json", "jsonl", "jsonl.zst", "arrow", "parquet"])
@pytest.mark.parametrize("in_folder", [False, True])
def test_fields_are_found_in_every_format(tmp_path: Path, kind: str, in_folder: bool) -> None:
    (tmp_path / f"part-0.{kind}").write_bytes(file_of(kind))
    path = tmp_path if in_folder else tmp_path / f"part-0.{kind}"
    written = yaml.safe_load(first_recipe(str(path), None).text(tmp_path))
    corpus = CorpusConfig.model_validate(written["corpus"])
    assert corpus.columns == Columns(id="Document-ID", title="Headline", text="Body")
    rows = read(path, columns=corpus.columns)
    assert [row.passage and tuple(row.passage)[:3] for row in rows] == [tuple(row[1:]) for row in ROWS]


@pytest.mark.parametrize(
    ("folder", "store"),
    [(".", "store"), ("beside", "store"), ("texts", "../texts-store"), ("texts/a", "../../texts-store")],
)
def test_the_store_is_never_in_the_corpus(tmp_path: Path, folder: str, store: str) -> None:
    (tmp_path / "texts" / "a").mkdir(parents=True)
    (tmp_path / "texts" / "a.txt").write_text("a passage")
    made = first_recipe(str(tmp_path / "texts"), None)
    assert yaml.safe_load(made.text(tmp_path / folder))["store"] == store
    (tmp_path / "texts").rename(tmp_path / "store")
    made = first_recipe(str(tmp_path / "store"), None)
    assert yaml.safe_load(made.text(tmp_path))["store"] == "store-store"
