"""Planning: which files belong to the corpus, what they are, how they are cut, and what is refused."""

import gzip
import os
import tracemalloc
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dpr.corpus.rows import Fields, InputFile, Slice, Windows
from dpr.corpus.slices import plan_slices
from dpr.errors import CorpusError
from dpr.recipe import Columns, CorpusConfig, EncoderConfig
from tests.corpus.reading import read

BEIR = b'{"_id": "1", "title": "T", "text": "beir"}\n'
JSONL = b'{"id": "2", "title": "T", "text": "jsonl", "_id": "not this"}\n'
TSV = b"id\ttext\ttitle\n3\ttsv\tT\n"


def write_all(folder: Path) -> None:
    pq.write_table(pa.table({"id": ["4"], "title": ["T"], "text": ["parquet"]}), folder / "p.parquet")
    for name, data in {"b.jsonl": BEIR, "j.jsonl": JSONL, "t.tsv": TSV, "d.txt": b"documents"}.items():
        (folder / name).write_bytes(data)
        if name != "d.txt":
            (folder / f"{name}.gz").write_bytes(gzip.compress(data))


@pytest.mark.parametrize(
    ("name", "format_"),
    [
        ("b.jsonl", "beir"),
        ("b.jsonl.gz", "beir"),
        ("j.jsonl", "jsonl"),
        ("j.jsonl.gz", "jsonl"),
        ("t.tsv", "dpr-tsv"),
        ("t.tsv.gz", "dpr-tsv"),
        ("p.parquet", "parquet"),
        ("d.txt", "documents"),
    ],
)
def test_a_file_is_known_by_its_first_bytes_whatever_its_name(tmp_path: Path, name: str, format_: str) -> None:
    write_all(tmp_path)
    named, unnamed = tmp_path / name, tmp_path / "data.bin"
    unnamed.write_bytes(named.read_bytes())
    for path in (named,) if format_ == "documents" else (named, unnamed):
        (slice_,) = plan_slices(CorpusConfig(path=str(path))).slices
        assert slice_.format == format_
        (row,) = read(path)
        assert row.passage is not None
        assert format_.endswith(row.passage.text)
        assert [row] == read(path, format=format_), "and naming the format makes no difference"


def test_beir_folder_reads_its_corpus_and_not_its_queries(tmp_path: Path) -> None:
    (tmp_path / "qrels").mkdir()
    (tmp_path / "corpus.jsonl.gz").write_bytes(gzip.compress(BEIR))
    (tmp_path / "queries.jsonl").write_text('{"_id": "q", "text": "a question"}\n')
    (tmp_path / "qrels" / "dev.tsv").write_text("query-id\tcorpus-id\tscore\nq\t1\t1\n")
    (tmp_path / "README.md").write_text("# About")
    for format_ in ("auto", "beir"):
        (slice_,) = plan_slices(CorpusConfig(path=str(tmp_path), format=format_)).slices
        assert slice_.path == str(tmp_path / "corpus.jsonl.gz")


def test_folder_glob_and_list_give_every_file_once_in_the_order_of_their_paths(tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    for number, name in enumerate(["c.jsonl", "a.jsonl", "deep/b.jsonl"]):
        (tmp_path / name).write_text(f'{{"id": "{number}", "title": "", "text": "x"}}\n')
    (tmp_path / "_SUCCESS").touch()
    (tmp_path / ".part.jsonl").write_text("half written")
    folder = str(tmp_path)
    for path in (folder, f"{folder}/**/*.jsonl", [f"{folder}/*.jsonl", f"{folder}/deep", f"{folder}/a.jsonl"]):
        assert [row.passage.id for row in read(path) if row.passage] == ["1", "0", "2"]


def test_slices_cut_a_file_into_ranges_and_gzip_not_at_all(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(JSONL * 100)
    (tmp_path / "b.jsonl.gz").write_bytes(gzip.compress(JSONL * 100_000, 0))
    slices = plan_slices(CorpusConfig(path=str(tmp_path), slice_bytes=2500)).slices
    size = len(JSONL) * 100
    assert [(s.start, s.stop) for s in slices[:-1]] == [(at, min(at + 2500, size)) for at in range(0, size, 2500)]
    assert (slices[-1].compression, slices[-1].start) == ("gzip", 0)
    assert slices == plan_slices(CorpusConfig(path=str(tmp_path), slice_bytes=2500)).slices


FILES = st.builds(InputFile, path=st.text(), size_bytes=st.integers(0), identity=st.text())


@given(
    st.builds(
        Slice,
        path=st.text(),
        format=st.sampled_from(["beir", "documents"]),
        start=st.integers(0),
        stop=st.integers(0),
        size_bytes=st.integers(0),
        identity=st.text(),
        compression=st.sampled_from([None, "gzip", "zstd"]),
        columns=st.lists(st.text()).map(tuple),
        files=st.lists(FILES).map(tuple),
    )
)
def test_slices_go_through_json_unchanged(slice_: Slice) -> None:
    again = Slice.model_validate_json(slice_.to_bytes())
    assert again == slice_
    assert hash(again) == hash(slice_)
    corpus = CorpusConfig(path="x")
    assert again.slice_id(corpus) == slice_.slice_id(corpus)


CHANGED_FIELDS: dict[str, Any] = {
    "path": "elsewhere",
    "format": "jsonl",
    "columns": Columns(title=None),
    "names": ["id", "text"],
    "quoting": "none",
    "strict": True,
    "passage_words": 50,
    "overlap_words": 5,
    "slice_bytes": 5000,
    "max_passage_chars": 5000,
    "long": "split",
    "rescan": "always",
}


@pytest.mark.parametrize("name", CorpusConfig.model_fields)
def test_a_slice_has_another_id_if_the_recipe_reads_other_rows_from_it(name: str) -> None:
    slice_, corpus = Slice(path="a", format="jsonl", stop=5, identity="5-1"), CorpusConfig(path="x")
    changed = corpus.model_copy(update={name: CHANGED_FIELDS[name]})
    assert (slice_.slice_id(changed) == slice_.slice_id(corpus)) == (
        name in ("path", "slice_bytes", "rescan", "strict", "long")  # long: in the slice itself
    )


@pytest.mark.parametrize(
    ("change", "is_same"),
    [
        ({"path": "b"}, False),
        ({"format": "beir"}, False),
        ({"start": 1}, False),
        ({"stop": 6}, False),
        ({"identity": "5-2"}, False),
        ({"compression": "gzip"}, False),
        ({"fields": Fields(id="_id")}, False),
        ({"header": True}, False),
        ({"windows": Windows(encoder=EncoderConfig(model="m"), encoder_id="e")}, False),
        ({"columns": ("id",)}, False),
        ({"files": (InputFile(path="f", size_bytes=1, identity="1-1"),)}, False),
        ({"files": (InputFile(path="f", size_bytes=1, identity="1-2"),)}, False),
        ({"size_bytes": 9}, True),
    ],
)
def test_a_slice_has_another_id_if_it_or_its_file_changed(change: dict[str, Any], is_same: bool) -> None:
    slice_, corpus = Slice(path="a", format="jsonl", stop=5, identity="5-1"), CorpusConfig(path="x")
    assert (slice_.model_copy(update=change).slice_id(corpus) == slice_.slice_id(corpus)) == is_same


@pytest.mark.parametrize("suffix", ["jsonl", "jsonl.gz", "tsv", "txt", "parquet"])
def test_the_sizes_of_slices_add_up_to_the_sizes_of_the_files(tmp_path: Path, suffix: str) -> None:
    for number in range(3):
        path = tmp_path / f"{number}.{suffix}"
        rows = [(str(row), "T", f"text {row}") for row in range(100 * (number + 1))]
        if suffix == "parquet":
            columns = zip(*rows, strict=True)
            table = pa.table(dict(zip(("id", "title", "text"), map(list, columns), strict=True)))
            pq.write_table(table, path, row_group_size=50)
        else:
            data = TSV * 1000 if suffix == "tsv" else JSONL * 50 * (number + 1)
            path.write_bytes(gzip.compress(data) if suffix.endswith("gz") else data)
    corpus = CorpusConfig(path=str(tmp_path)).model_copy(update={"slice_bytes": 1000})
    slices = plan_slices(corpus).slices
    size_bytes = sum(path.stat().st_size for path in tmp_path.iterdir())
    assert len(slices) >= 3
    # a Parquet file is shared among its row groups, rounded down
    assert size_bytes - len(slices) <= sum(slice_.size_bytes for slice_ in slices) <= size_bytes
    assert all(slice_.size_bytes > 0 for slice_ in slices)


def test_a_file_whose_name_is_not_utf8_is_refused(tmp_path: Path) -> None:
    path = os.fsdecode(os.fsencode(tmp_path / "a") + b"\xff.jsonl")
    Path(path).write_bytes(JSONL)
    for named in (path, str(tmp_path)):
        with pytest.raises(CorpusError, match=r"a\\udcff\.jsonl' has a name that is not UTF-8; rename it"):
            plan_slices(CorpusConfig(path=named))


@pytest.mark.parametrize(
    ("files", "fields", "message"),
    [
        ({}, {}, "is an empty folder; give a file"),
        ({}, {"path": "gone.jsonl"}, r"gone\.jsonl is not there; give a file"),
        ({}, {"path": "*.jsonl"}, r"\*\.jsonl is a glob that matches no file"),
        (
            {"x.csv": b"a,b"},
            {"format": "parquet"},
            r"no file that corpus\.format \(parquet\) can be: .*x\.csv: its name is not that of parquet.*give a",
        ),
        (
            {"x.bin": b"\0\1\2", "y": b"SQLite format 3\0"},
            {},
            r"no file that can be read: .*x\.bin: is of no known format.* and it is binary data.*y: .*an SQLite data",
        ),
        ({"a.jsonl": b""}, {}, r"is empty: its files hold no rows \(.*a\.jsonl: it is empty \(0 bytes\)\); put"),
        ({"a.jsonl": b"\n\r\n \n"}, {}, r"a\.jsonl: it has only empty lines"),
        ({"a.jsonl.gz": gzip.compress(b"")}, {}, r"a\.jsonl\.gz: it has only empty lines"),
        ({"a.tsv": b"id\ttext\ttitle\n"}, {}, r"a\.tsv: it holds a header and no rows"),
        ({"a.json": b" [\n]\n"}, {}, r"a\.json: it is an empty array"),
        (
            {"a.jsonl.gz": JSONL},
            {},
            r"a\.jsonl\.gz is not gzip, as its name says; it is text that begins with '\{\"id\":",
        ),
        ({"a.jsonl.zst": b"PK\x03\x04"}, {}, r"a\.jsonl\.zst is not zstd, as its name says; it is a zip archive"),
        (
            {"a.jsonl.gz": gzip.compress(JSONL)[:-9]},
            {},
            r"a\.jsonl\.gz is damaged or cut short \(gzip: .*fetch it again",
        ),
        ({"a.jsonl.gz": b"\x1f\x8b\x08\x00" + b"x" * 50}, {}, r"a\.jsonl\.gz is damaged or cut short \(gzip: "),
        (
            {"a.jsonl": b"\x89PNG\r\n\x1a\n"},
            {},
            "is of no known format: none of its first lines is a JSON.*a PNG picture",
        ),
        ({"a.jsonl": TSV}, {"format": "jsonl"}, "is not jsonl: none of its first lines is a JSON object"),
        ({"a.parquet": JSONL}, {"format": "parquet"}, r"a\.parquet is not Parquet or is damaged"),
        ({"a.tsv": b"id,text,title\n1,x,y\n"}, {"format": "dpr-tsv"}, r"no column 'id', only \['id,text,title'\]"),
        ({"a.tsv": b"qid\ttext\ttitle\n1\tx\ty\n"}, {"format": "dpr-tsv"}, "has no column 'id'"),
        ({"a.jsonl": b'{"pk": 1, "body": "x"}'}, {}, r"no column 'id', only \['pk', 'body'\]; set columns\.id in the"),
        ({"a.jsonl": b'{"id": 1, "text": "x"}'}, {}, r"no column 'title', only .* \(null: passages have no titles\)"),
        ({"a.jsonl": JSONL}, {"columns": Columns(text="Text")}, "no column 'Text'"),
        ({"corpus.jsonl": b'{"_id": 1, "body": "x"}'}, {"format": "beir"}, r"no column 'text', only \['_id', 'body'\]"),
        ({"a.jsonl": JSONL, "t.tsv": TSV}, {}, r"mixes formats: .*a\.jsonl is jsonl, .*t\.tsv is dpr-tsv; set corpus"),
        ({"a.jsonl": JSONL, "b.jsonl": BEIR}, {}, "mixes formats"),
        ({"a.jsonl": JSONL, "a.txt": b"a document"}, {}, r"mixes formats: .*a\.jsonl is jsonl, .*a\.txt is documents"),
        ({"a.jsonl": JSONL, "b": b"?"}, {"strict": True}, r"has 1 file left unread, .*strict is true: .*/b: "),
        ({"a.jsonl": JSONL, "a.jsonl.gz": b""}, {}, r"holds both .*a\.jsonl and the same with \.gz"),
    ],
)
def test_what_cannot_be_a_corpus_is_refused_with_a_sentence(
    tmp_path: Path, files: dict[str, bytes], fields: dict[str, Any], message: str
) -> None:
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
    path = str(tmp_path / fields.pop("path")) if "path" in fields else str(tmp_path)
    with pytest.raises(CorpusError, match=message) as caught:
        plan_slices(CorpusConfig(path=path, **fields))
    assert "\n" not in str(caught.value)


def test_beir_passages_may_lack_a_title(tmp_path: Path) -> None:
    (tmp_path / "corpus.jsonl").write_text('{"_id": 5, "text": "x"}\n')
    (row,) = read(tmp_path)
    assert row.passage == ("5", "", "x")


def test_a_bad_first_line_hides_neither_format_nor_columns(tmp_path: Path) -> None:
    (tmp_path / "corpus.jsonl").write_bytes(b'{"id": "1", "text": \n' + JSONL)
    bad, good = read(tmp_path)
    assert (bad.reason, good.passage) == ("broken JSON", ("2", "T", "jsonl"))


def test_planning_a_large_file_takes_little_more_memory_than_the_bytes_that_it_reads(tmp_path: Path) -> None:
    lines = [f'{{"id": "{row}", "title": "", "text": "{"x" * 20}"}}\n' for row in range(40_000)]
    (tmp_path / "a.jsonl").write_text("".join(lines))
    del lines
    tracemalloc.start()
    try:
        (slice_,) = plan_slices(CorpusConfig(path=str(tmp_path))).slices
        _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert slice_.format == "jsonl"
    assert peak_bytes < 3 * 2**20  # the first MiB of the file, and a buffer of the same size
