"""Layouts that data sets have: TSV and CSV with and without a header, JSON documents, and fields by other names."""

import csv
import io
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dpr.corpus.json_values import iter_values
from dpr.corpus.rows import Passage
from dpr.errors import CorpusError
from dpr.recipe import Columns
from tests.corpus.reading import read

ONE = Passage("1", "T", "one")
REUSES_FOLDER = settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)


def passages(path: Path, **fields: Any) -> list[Passage | None]:
    return [row.passage for row in read(path, **fields)]


@pytest.mark.parametrize(
    ("name", "data", "fields"),
    [
        ("collection.tsv", "1\tone\n2\ttwo\n", {}),  # MS MARCO
        ("collection", "1\tone\n2\ttwo\n", {}),
        ("psgs.tsv", "1\tone\tT\n2\ttwo\tU\n", {}),  # DPR's order, without its header
        ("psgs.tsv", "id\ttext\ttitle\n1\tone\tT\n2\ttwo\tU\n", {"format": "tsv"}),
        ("psgs.tsv", "1\tone\tT\n2\ttwo\tU\n", {"format": "dpr-tsv"}),
        ("a.csv", "1,one\n2,two\n", {}),
        ("a.csv", "1,one\n", {}),
        ("a.csv", "text,id\none,1\ntwo,2\n", {}),
        ("a.csv", "\n\r\nid,text\n\n1,one\n2,two\n", {}),
        ("a.csv", 'id;"title";text\n1;T;one\n2;"U";two\n', {}),
        ("a.csv", "1;one\n2;two\n", {}),
        ("a.csv", "sep=;\r\nid;title;text\r\n1;T;one\r\n2;U;two\r\n", {}),  # Excel
        ("a.csv", '\ufeff"sep=|"\n1|one\n2|two\n', {}),
        ("a.csv", '1|"T"|one\n2|U, V; W|two\n', {"names": ["id", "title", "text"]}),
        ("a", 'id,title,text\n1,T,one\n2,"U",two\n', {}),
        ("a.csv", "T,1,one\nU,2,two\n", {"names": ["title", "id", "text"]}),
        ("a.tsv", "T\t1\tone\nU\t2\ttwo\n", {"columns": Columns(title=0, id=1, text=2)}),
        ("a.csv", "pk,head,body\n1,T,one\n2,U,two\n", {"columns": Columns(id="pk", title="head", text="body")}),
        ("a.csv", "pk,head,body\n1,T,one\n2,U,two\n", {"columns": Columns(id=0, title=1, text=2)}),
        ("a.tsv", "docid\ttitle\ttext\n1\tT\tone\n2\tU\ttwo\n", {}),
        ("a.jsonl", '{"docid": 1, "title": "T", "text": "one"}\n{"docid": "2", "text": "two"}\n', {}),  # Tevatron
        ("a.json", '{"id": "1", "contents": "T\\none"}\n{"id": "2", "contents": "two"}\n', {}),  # pyserini
        ("a.json", '[{"id": "1", "contents": "T\\none"}, {"id": "2", "contents": "two"}]', {}),
        ("a.json", '{\n "id": 1,\n "title": "T",\n "text": "one"\n}\n', {}),
        ("a.json", '{\n "id": 1,\n "title": "T",\n "text":\n"one"}\n{"id": 2,\n"title": "U", "text": "two"}', {}),
        ("a.json", '[\n{"id": 1, "title": "T", "text": "one"},\n{"id": 2, "title": "U", "text": "two"}\n]\n', {}),
        ("a", '\ufeff[{"_id": 1, "title": "T", "text": "one"}]', {}),
        (
            "a.jsonl",
            '{"meta": {"id": 1, "t": {"en": "T"}}, "body": ["o", "ne"]}\n',
            {"columns": Columns(id="meta.id", title="meta.t.en", text="body", join="")},
        ),
        (
            "a.jsonl",
            '{"meta.id": 1, "meta": {"id": 9}, "x": "one"}\n',
            {"columns": Columns(id="meta.id", title=None, text="x")},
        ),
    ],
)
def test_what_people_have_is_read(tmp_path: Path, name: str, data: str, fields: dict[str, Any]) -> None:
    path = tmp_path / name
    path.write_text(data, newline="")
    first, *others = passages(path, **fields)
    assert first is not None
    assert first in (ONE, ONE._replace(title=""))
    assert first.title == ("T" if "T" in data else "")
    assert [other and (other.id, other.text) for other in others] in ([], [("2", "two")])


@pytest.mark.parametrize(
    ("name", "data", "fields", "message"),
    [
        ("a.csv", "pk,body\n1,one two\n", {}, r"has no column 'id', only \['pk', 'body'\]; set columns\.id"),
        (
            "a.csv",
            "1,one two,x,y\n",
            {},
            r"has 4 columns between ',' and no header .*name the columns of",
        ),
        (
            "a.csv",
            "Document Id,Title,Body text\n17,A title,This is a whole sentence or two.\n",
            {},
            r"no column 'id', only \['Document Id', 'Title', 'Body text'\]; .*or corpus\.names if the file has no",
        ),
        ("a.tsv", "no tabs\nat all\n", {}, "has 1 columns between tabs and no header"),
        (
            "a.tsv",
            "1\tone\n",
            {"columns": Columns(id=0, title=None, text=2)},
            r"no column 2, only 2: .*from 0",
        ),
        ("a.json", '{"data": [{"id": 1}]}', {}, r"has no column 'id', only \['data'\]"),
        ("a.jsonl", '{"id": 1, "title": "", "text": "x"}\n', {"columns": Columns(id=0)}, "has no column 0"),
        ("a.csv", "id,text\n1,x\n", {"encoding": "utf-16"}, r"a\.csv is UTF-16 text; save it as UTF-8"),
        ("a.csv", "id,text\r1,x\r2,y\r", {}, "has no record that is CSV; .*a carriage return alone"),
    ],
)
def test_what_has_no_such_columns_is_refused(
    tmp_path: Path, name: str, data: str, fields: dict[str, Any], message: str
) -> None:
    (tmp_path / name).write_text(data, fields.get("encoding", "utf-8"))
    with pytest.raises(CorpusError, match=message):
        read(tmp_path, **{name: value for name, value in fields.items() if name != "encoding"})


def test_quotes_of_a_file_without_a_header_are_text_unless_the_recipe_says_otherwise(tmp_path: Path) -> None:
    path = tmp_path / "collection.tsv"
    path.write_text('1\t"Hello" she said\n2\t"open\n3\t"a ""b"""\n')
    assert [one and one.text for one in passages(path)] == ['"Hello" she said', '"open', '"a ""b"""']
    rows = read(path, quoting="csv")
    assert [(row.passage and row.passage.text, row.reason[:14]) for row in rows] == [
        ("Hello she said", ""),
        (None, "broken quoting"),
        ('a "b"', ""),
    ]


@REUSES_FOLDER
@given(
    records=st.lists(
        st.tuples(*[st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), min_size=1)] * 3),
        min_size=1,
    ),
    end=st.sampled_from(["\n", "\r\n"]),
)
def test_csv_with_quotes_and_line_ends_reads_as_csv_does(
    tmp_path: Path, records: list[tuple[str, str, str]], end: str
) -> None:
    written = io.StringIO(newline="")
    csv.writer(written, quoting=csv.QUOTE_ALL, lineterminator=end).writerows([("id", "text", "title"), *records])
    path = tmp_path / "a.csv"
    path.write_bytes(written.getvalue().encode())
    found = read(path)
    for row, (id_, text, title) in zip(found, records, strict=True):
        if id_.strip() and text.strip():
            assert row.passage == (id_, title, text)
        else:
            assert row.reason in ("no id", "no text")
        assert path.read_bytes()[row.position :].startswith(row.raw)


def test_a_broken_record_of_csv_affects_no_other(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text(
        'id,text\n1,"one\nmore"\n2,"open\n3,three\n4,"a "b" c"\n5,five\n6,x,y\n7,' + "x" * 4_000_000 + "\n8,eight\n"
    )
    found = read(path, max_passage_chars=50)
    assert [row.passage and (row.passage.id, row.passage.text) for row in found] == [
        ("1", "one\nmore"),
        None,
        ("3", "three"),
        None,
        ("5", "five"),
        None,
        None,
        ("8", "eight"),
    ]
    reasons = [row.reason.partition(":")[0] for row in found if row.passage is None]
    assert reasons == ["broken quoting", "broken quoting", "3 columns instead of 2", "longer than max_passage_chars"]


SCALARS = st.none() | st.booleans() | st.integers() | st.text('"\\\\,[]{} aé', max_size=4)
JSON = st.recursive(SCALARS, lambda inner: st.lists(inner) | st.dictionaries(st.text(max_size=2), inner), max_leaves=6)


@settings(max_examples=60, deadline=None)
@given(values=st.lists(JSON), indent=st.sampled_from([None, 1]), ascii_only=st.booleans(), read_bytes=st.integers(1, 9))
def test_the_values_of_an_array_are_found_whole(
    values: list[Any], indent: int | None, ascii_only: bool, read_bytes: int
) -> None:
    data = json.dumps(values, indent=indent, ensure_ascii=ascii_only).encode()

    class Pieces(io.BytesIO):
        def read(self, _: int | None = -1) -> bytes:
            return super().read(read_bytes)

    found = list(iter_values(Pieces(data), len(data)))
    assert [json.loads(value) for _, value, _ in found] == values
    for offset, value, is_cut in found:
        assert data[offset:].startswith(value)
        assert not is_cut


def test_a_bad_value_of_an_array_affects_no_other(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    good = '{"id": "g", "title": "t", "text": "good"}'
    path.write_text(f'[{good}, {{"id" "a"}}, 5, "x", {{"id": "b", "title": "", "text": "{"x" * 3_000_000}"}}, {good}')
    found = read(path, max_passage_chars=100)
    assert [row.reason for row in found] == [
        "",
        "broken JSON",
        "an integer instead of a JSON object",
        "a string instead of a JSON object",
        "longer than max_passage_chars",
        "",
    ]


def test_numbers_are_titles_and_lists_of_texts_are_joined(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    lines = [
        {"id": 1, "title": 1984, "text": ["one", "two"]},
        {"id": 2, "title": 1.5, "text": "x"},
        {"id": 3, "text": [1]},
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    first, second, third = read(path, columns=Columns(join="\n"))
    assert (first.passage, second.passage) == (Passage("1", "1984", "one\ntwo"), Passage("2", "1.5", "x"))
    assert third.reason == "text is a list, not a string"
    path.write_text('{"id": 1, "title": NaN, "text": "x"}\n')
    assert read(path)[0].passage == Passage("1", "", "x"), "Python's JSON and pandas write NaN for what is missing"
    pq.write_table(
        pa.table({"meta": [{"id": 1, "n": 7}], "title": [2.5], "text": [["one", "two"]]}), tmp_path / "a.parquet"
    )
    (row,) = read(tmp_path / "a.parquet", columns=Columns(id="meta.id", join=" "))
    assert row.passage == Passage("1", "2.5", "one two")
    with pytest.raises(CorpusError, match=r"list<.*> in column 'text'; .*or set columns\.join to join the texts"):
        read(tmp_path / "a.parquet", columns=Columns(id="meta.id"))
    with pytest.raises(CorpusError, match=r"no column 'meta\.no', only \['meta', 'title', 'text'\]"):
        read(tmp_path / "a.parquet", columns=Columns(id="meta.no", join=" "))


@pytest.mark.parametrize("new", [pa.ipc.new_file, pa.ipc.new_stream])
def test_arrow_reads_as_parquet_does(tmp_path: Path, new: Any) -> None:
    texts = [b"good", b"st\xffray", None, "gööd".encode()]
    strings = pa.Array.from_buffers(pa.string(), len(texts), pa.array(texts, pa.binary()).buffers())
    table = pa.table({"_id": [1, 2, 3, 4], "title": ["T", None, "T", "T"], "text": strings})
    pq.write_table(table, tmp_path / "a.parquet")
    with new(tmp_path / "data.bin", table.schema) as writer:
        writer.write_table(table, max_chunksize=3)
    expected = [(row.position, row.stored, row.passage, row.reason) for row in read(tmp_path / "a.parquet")]
    assert [(row.position, row.stored, row.passage, row.reason) for row in read(tmp_path / "data.bin")] == expected
    assert [reason for _, _, _, reason in expected] == ["", "bad UTF-8", "no text", ""]
