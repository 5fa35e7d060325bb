"""Any bytes under any name give rows or a CorpusError of one sentence, and never another error."""

import bz2
import gzip
import io
import json
import lzma
from pathlib import Path

import lz4.frame
import pyarrow as pa
import pyarrow.parquet as pq
import pypdf
import pytest
import zstandard
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dpr.errors import CorpusError
from dpr.recipe import Columns, CorpusFormat
from tests.corpus.reading import read

ENDINGS = ["jsonl", "json", "tsv", "csv", "parquet", "arrow", "txt", "md", "html", "pdf", "bin", "jsonl.gz", "csv.zst"]
FORMATS: list[CorpusFormat] = ["auto", "jsonl", "beir", "json", "tsv", "csv", "parquet", "arrow", "documents"]
RECORDS = [{"id": str(n), "title": "T", "text": f"text {n}", "meta": {"lang": "de"}} for n in range(3)]


def tables() -> list[bytes]:
    table, sinks = pa.Table.from_pylist(RECORDS), [io.BytesIO() for _ in range(3)]
    pq.write_table(table, sinks[0])
    for sink, new in ((sinks[1], pa.ipc.new_file), (sinks[2], pa.ipc.new_stream)):
        with new(sink, table.schema) as writer:
            writer.write_table(table)
    return [sink.getvalue() for sink in sinks]


def pdf() -> bytes:
    document, sink = pypdf.PdfWriter(), io.BytesIO()
    document.add_blank_page(100, 100)
    document.add_metadata({"/Title": "T"})
    document.write(sink)
    return sink.getvalue()


LINES = "".join(json.dumps(record) + "\n" for record in RECORDS).encode()
VALID = [
    LINES,
    json.dumps(RECORDS, indent=2).encode(),
    b'id,title,text\n1,T,"two\nlines ""quoted"""\n2,T,x\n',
    b'id\ttext\ttitle\n1\t"x ""y"""\tT\n2\ty\tT\n',
    b"1\tone\n2\ttwo\n",
    *(pack(LINES) for pack in (gzip.compress, bz2.compress, lzma.compress, zstandard.compress, lz4.frame.compress)),
    *tables(),
    b"<html><head><title>T</title></head><body><h1>H</h1><p>one<br>two</body></html>",
    pdf(),
]
BRACKETS = [b'{"id": "1"', b"}", b"[", b"]"]
PIECES = [*BRACKETS, b'"', b"\\", b",", b"\t", b"\n", b"\r\n", b"id\ttext\n", b"id,text\n", b"\xff"]
COLUMNS = [
    Columns(),
    Columns(id="meta.lang", join=" "),
    Columns(id=0, title=None, text=1, extra={"meta.lang": "integer"}),
]


@st.composite
def harmed(draw: st.DrawFn) -> bytes:
    """Draw a valid file in which some bytes are replaced, and which may be cut."""
    data = bytearray(draw(st.sampled_from(VALID)))
    for _ in range(draw(st.integers(0, 3))):
        at = draw(st.integers(0, len(data) - 1))
        data[at : at + draw(st.integers(0, 4))] = draw(st.binary(max_size=4))
    return bytes(data[: draw(st.integers(0, len(data)))] if draw(st.booleans()) else data)


@pytest.mark.filterwarnings("ignore")
@settings(max_examples=400, suppress_health_check=list(HealthCheck), deadline=None)
@given(
    data=st.binary(max_size=60) | st.lists(st.sampled_from(PIECES), max_size=12).map(b"".join) | harmed(),
    ending=st.sampled_from(ENDINGS),
    format_=st.sampled_from(FORMATS) | st.just("auto"),
    in_folder=st.booleans(),
    columns=st.sampled_from(COLUMNS),
)
def test_any_bytes_give_rows_or_a_sentence(
    tmp_path: Path, data: bytes, ending: str, format_: CorpusFormat, in_folder: bool, columns: Columns
) -> None:
    path = tmp_path / f"f.{ending}"
    path.write_bytes(data)
    try:
        rows = read(tmp_path if in_folder else path, format=format_, columns=columns, max_passage_chars=30)
    except CorpusError as error:
        rows, sentence = [], str(error)
    else:
        sentence = ""
    finally:
        path.unlink()
    assert "\n" not in sentence
    positions = [row.position for row in rows]
    assert positions == sorted(set(positions))
    assert all(row.passage is None or row.passage.text.strip() for row in rows)
    assert all(isinstance(row.raw, bytes) for row in rows)
