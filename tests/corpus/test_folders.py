"""Folders as people have them: links, hidden names, files of other kinds, empty parts, and data sets saved to disk."""

import gzip
import io
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dpr.corpus.slices import CorpusPlan, plan_slices
from dpr.errors import CorpusError, RecipeError
from dpr.operations.check import RecipeCheck
from dpr.recipe import Columns, CorpusConfig
from dpr.run import Plan
from tests.collection import Collection
from tests.corpus.reading import read
from tests.tiny import Quiet


def line(passage_id: str) -> str:
    return json.dumps({"id": passage_id, "title": "T", "text": "a text"}) + "\n"


def write(path: Path, *ids: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(map(line, ids)))
    return path


def ids(path: Path | str | list[str]) -> list[str]:
    return sorted(row.passage.id for row in read(path) if row.passage)


def plan(path: Path, **fields: object) -> CorpusPlan:
    return plan_slices(CorpusConfig.model_validate({"path": str(path), **fields}))


def test_every_readable_file_is_read_whatever_its_name(tmp_path: Path) -> None:
    write(tmp_path / "a.jsonl", "a")
    write(tmp_path / "part-00000", "b")
    write(tmp_path / "deep" / "c.data.json", "c")
    (tmp_path / "d.json").write_text(json.dumps([json.loads(line("d"))], indent=2))
    (tmp_path / "e.JSONL.GZ").write_bytes(gzip.compress(line("e").encode()))
    assert ids(tmp_path) == ["a", "b", "c", "d", "e"]
    assert plan(tmp_path).left_out == []


def test_what_cannot_be_read_is_named_and_a_strict_recipe_refuses_it(tmp_path: Path) -> None:
    write(tmp_path / "a.jsonl", "a")
    (tmp_path / "picture.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    (tmp_path / "README.md").write_text("# About")
    (tmp_path / "about.json").write_text('{"rows": 1}')
    found = plan(tmp_path)
    assert {Path(file.path).name: file.reason.partition(":")[0].partition(",")[0] for file in found.left_out} == {
        "picture.png": "is of no known format",
        "README.md": "it describes the data beside it; set corpus.format to documents to read it",
        "about.json": "has no column 'id'",
    }
    assert plan_slices(CorpusConfig(path=str(tmp_path)), found.kinds).left_out == found.left_out, "also when remembered"
    assert found.notes()[0].startswith("3 files left out: ")
    with pytest.raises(CorpusError, match=r"3 files left unread, and corpus\.strict is true: .*picture\.png"):
        plan(tmp_path, strict=True)
    (tmp_path / "b").write_bytes(gzip.compress(line("b").encode())[:-9])
    with pytest.raises(CorpusError, match=r"/b is damaged or cut short"):  # it could be data
        plan(tmp_path)
    (tmp_path / "b").unlink()
    (tmp_path / "b.jsonl").write_text("broken")
    with pytest.raises(CorpusError, match=r"b\.jsonl is of no known format"):  # a data suffix requires that format
        plan(tmp_path)


def test_a_recipe_that_names_a_format_reads_all_files_that_can_be_of_it(tmp_path: Path) -> None:
    write(tmp_path / "a.json", "a")
    write(tmp_path / "b.txt", "b")
    (tmp_path / "c.csv").write_text("id,text\nc,x\n")
    (tmp_path / "d.json").write_text("[\n]")
    (tmp_path / "README.md").write_text("# About")
    found = plan(tmp_path, format="jsonl")
    assert [Path(slice_.path).name for slice_ in found.slices] == ["a.json", "b.txt"]
    assert sorted(Path(file.path).name for file in found.left_out) == ["README.md", "c.csv"]
    assert [Path(slice_.path).name for slice_ in plan(tmp_path, format="csv").slices] == ["c.csv"]
    pq.write_table(pa.table({"id": [1], "title": [""], "text": ["x"]}), tmp_path / "part-0")
    assert [Path(slice_.path).name for slice_ in plan(tmp_path, format="parquet").slices] == ["part-0"]


def test_a_run_tells_which_files_it_leaves_out(tmp_path: Path, encoder: Path) -> None:
    write(tmp_path / "d" / "a.jsonl", "a", "b")
    write(tmp_path / "d" / "_temporary" / "0" / "a.jsonl", "x")
    (tmp_path / "d" / "b.jsonl").touch()
    (tmp_path / "d" / "notes").write_bytes(b"\0")
    collection = Collection(tmp_path / "night", encoder, corpus={"path": str(tmp_path / "d"), "format": "auto"})
    progress = Quiet()
    report = collection.night(progress=progress).report
    assert report is not None
    assert [file.path for file in report.left_out] == [str(tmp_path / "d" / "notes")]
    left_out, empty, hidden = report.notes
    assert "notes: is of no known format" in left_out
    assert (empty, hidden) == ("1 file without rows", "1 file hidden: names that begin with _ or . are not read")
    notes = [f"corpus: {note}" for note in report.notes]
    assert notes == progress.messages[:3] == [line for line in report.lines() if line in notes]


def test_names_that_begin_with_an_underscore_or_a_dot_are_hidden_at_any_depth(tmp_path: Path) -> None:
    write(tmp_path / "year=2024" / "_key=1" / "a.jsonl", "a")
    for name in ("_SUCCESS", ".a.jsonl.crc", "_temporary/0/b.jsonl", "x/.git/c.jsonl", "x/_spark_metadata/0"):
        write(tmp_path / name, "hidden")
    assert ids(tmp_path) == ids(f"{tmp_path}/**/*.jsonl") == ["a"]
    assert plan(tmp_path).hidden == 5
    assert ids(f"{tmp_path}/_temporary/**/*.jsonl") == ["hidden"], "a glob may name what is hidden"
    assert ids(tmp_path / "_temporary" / "0") == ["hidden"], "and so may a path"


def test_links_are_followed_and_what_they_lead_to_is_read_once(tmp_path: Path) -> None:
    folder = tmp_path / "d"
    write(folder / "a.jsonl", "a")
    write(folder / "z" / "b.jsonl", "b")
    write(tmp_path / "elsewhere" / "c.jsonl", "c")
    write(tmp_path / "elsewhere" / "deep" / "e.jsonl", "e")
    write(tmp_path / "single.jsonl", "f")
    (folder / "b-link").symlink_to("z")  # before the folder itself, in the order of names
    (folder / "out").symlink_to(tmp_path / "elsewhere")
    (folder / "file.jsonl").symlink_to(tmp_path / "single.jsonl")
    (folder / "a-again.jsonl").symlink_to("a.jsonl")
    (tmp_path / "elsewhere" / "loop").symlink_to(folder)
    (tmp_path / "root").symlink_to(folder)
    for path in (folder, f"{folder}/**/*.jsonl", tmp_path / "root", [str(folder), str(tmp_path / "elsewhere")]):
        assert ids(path) == ["a", "b", "c", "e", "f"]
    assert ids(f"{folder}/*.jsonl") == ["a", "f"]
    assert str(folder / "z" / "b.jsonl") in {slice_.path for slice_ in plan(folder).slices}, "the name without links"
    (folder / "gone.jsonl").symlink_to("nowhere")
    with pytest.raises(CorpusError, match=r"gone\.jsonl is a broken link; repair or remove it"):
        plan(folder)


def test_what_lies_in_a_hidden_folder_is_read_by_the_links_to_it(tmp_path: Path) -> None:
    """Mounted volumes of Kubernetes, git-annex and DVC keep files in hidden folders, and show links to them."""
    folder = tmp_path / "d"
    write(folder / "..2024_01_01" / "a.jsonl", "a")
    (folder / "..data").symlink_to("..2024_01_01")
    (folder / "a.jsonl").symlink_to("..data/a.jsonl")
    write(folder / ".cache" / "v1" / "b.jsonl", "b")
    (folder / "current").symlink_to(".cache/v1")
    write(folder / ".cache" / "v0" / "old.jsonl", "old")
    (folder / ".#lock").symlink_to("nobody@nowhere")
    for path in (folder, f"{folder}/**/*.jsonl"):
        assert ids(path) == ["a", "b"]
    assert plan(folder).hidden == 1, "files that are read are not counted as hidden, nor is a link to nothing counted"
    assert ids(f"{folder}/*.jsonl") == ["a"]
    assert ids(f"{folder}/.cache/*/*.jsonl") == ["b", "old"]


def test_an_empty_part_is_a_part_without_rows(tmp_path: Path) -> None:
    def parquet(rows: int) -> bytes:
        sink = io.BytesIO()
        pq.write_table(pa.table({"id": ["p"] * rows, "title": ["T"] * rows, "text": ["x"] * rows}), sink)
        return sink.getvalue()

    parts = {
        "jsonl": [b"", b"\n \r\n", line("a").encode()],
        "jsonl.gz": [b"", gzip.compress(b""), gzip.compress(line("a").encode())],
        "tsv": [b"", b"id\ttext\ttitle\n", b"id\ttext\ttitle\n1\tx\tT\n"],
        "csv": [b"", b'"id","text"\r\n', b"id,text\n1,x\n"],
        "json": [b"", b"[]", line("a").encode()],
        "parquet": [b"", parquet(0), parquet(1)],
        "txt": [b"", b" \n", b"a document"],
    }
    for suffix, contents in parts.items():
        folder = tmp_path / suffix
        folder.mkdir()
        for number, data in enumerate(contents):
            (folder / f"part-{number}.{suffix}").write_bytes(data)
        assert len(ids(folder)) == 1, suffix
        (folder / f"part-2.{suffix}").write_bytes(b"")
        if suffix != "txt":  # a document without text is a row that cannot be used
            with pytest.raises(CorpusError, match="is empty: its files hold no rows"):
                plan(folder)


def test_keys_of_folders_are_columns(tmp_path: Path) -> None:
    write(tmp_path / "lang=d%65" / "year=2024" / "a.jsonl", "a")
    write(tmp_path / "lang=__HIVE_DEFAULT_PARTITION__" / "year=2025" / "b.jsonl", "b")
    columns = Columns.model_validate({"extra": {"lang": "string", "year": "integer"}})
    assert [row.extra for row in read(tmp_path, columns=columns)] == [(None, 2025), ("de", 2024)]
    pq.write_table(pa.table({"id": [1], "text": ["x"]}), tmp_path / "lang=d%65" / "p.parquet")
    (row,) = read(tmp_path / "lang=d%65" / "p.parquet", columns=Columns(title="lang"))
    assert row.passage == ("1", "de", "x")


def test_data_sets_saved_to_disk_are_the_files_that_their_state_names(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    records = [{"id": str(number), "title": "T", "text": f"text {number}"} for number in range(30)]
    split = datasets.Dataset.from_list(records)
    saved = tmp_path / "saved"
    datasets.DatasetDict({"a": split.select(range(20)), "b": split.select(range(20, 30))}).save_to_disk(
        saved, num_shards={"a": 3, "b": 1}
    )
    (saved / "a" / "cache-123.arrow").write_bytes((saved / "b" / "data-00000-of-00001.arrow").read_bytes())
    assert [row.passage and row.passage._asdict() for row in read(saved)] == records
    assert [Path(file.path).name for file in plan(saved).left_out] == ["cache-123.arrow"]
    state = saved / "b" / "state.json"
    document = json.loads(state.read_text())
    state.write_text(json.dumps(document | {"_indices_data_files": [{"filename": "indices.arrow"}]}))
    with pytest.raises(CorpusError, match=r"keeps its rows in an order of its own; save it again after flatten_"):
        plan(saved)
    state.write_text(json.dumps(document | {"_data_files": [{"filename": "gone.arrow"}]}))
    with pytest.raises(CorpusError, match=r"gone\.arrow is not there, but .*state\.json names it"):
        plan(saved)


@pytest.mark.parametrize(
    ("store", "corpus", "refused"),
    [
        ("docs/store", "docs", True),
        ("docs", "docs", True),
        (".", ".", True),
        ("link/store", "docs", True),
        ("docs/.store", "docs", False),  # hidden from a corpus
        ("docs/_store", "docs", False),
        ("docs/_year=2024/store", "docs", True),  # a key of a Hive folder, which is not hidden
        ("docs-store", "docs", False),
        ("store", "docs", False),
        (".", "docs", False),
        ("docs/store", "docs/*.jsonl", False),
        ("s3://bucket/docs", "docs", False),
    ],
)
def test_a_store_is_not_part_of_its_corpus(tmp_path: Path, store: str, corpus: str, *, refused: bool) -> None:
    write(tmp_path / "docs" / "a.jsonl", "a")
    (tmp_path / "link").symlink_to(tmp_path / "docs")
    config = CorpusConfig(path=str(tmp_path / corpus))
    place = store if "://" in store else str(tmp_path / store)
    if not refused:
        assert plan_slices(config, store=place).slices
        return
    with pytest.raises(
        RecipeError, match=r"^field store is .*, which is in the folder .*; name a folder outside of it$"
    ):
        plan_slices(config, store=place)


@pytest.mark.parametrize("others", ["metadata", "_versions"])
def test_a_folder_that_only_resembles_a_table_may_not_hold_the_store(tmp_path: Path, others: str) -> None:
    """Of a table, only the files that its log names are read; here it is all of them."""
    write(tmp_path / "a.jsonl", "a")
    write(tmp_path / others / "b.jsonl", "b")
    with pytest.raises(RecipeError, match="field store is"):
        plan_slices(CorpusConfig(path=str(tmp_path)), store=str(tmp_path / "store"))


def test_a_folder_that_names_its_files_may_hold_the_store(tmp_path: Path) -> None:
    write(tmp_path / "corpus.jsonl", "a")  # as BEIR has it
    store = str(tmp_path / "store")
    assert plan_slices(CorpusConfig(path=str(tmp_path)), store=store).slices
    with pytest.raises(RecipeError, match="field store is"):
        plan_slices(CorpusConfig(path=str(tmp_path), format="jsonl"), store=store)


def test_a_run_and_a_check_refuse_a_store_in_its_corpus(tmp_path: Path, encoder: Path) -> None:
    collection = Collection(tmp_path / "docs", encoder, {"a": "w1 w2"})
    collection.write_corpus()
    collection.change(corpus={"path": str(tmp_path / "docs"), "format": "jsonl"})
    with pytest.raises(RecipeError, match="field store is"):
        Plan.of(collection.recipe)
    findings = RecipeCheck(collection.recipe).findings()
    assert [found.topic for found in findings if "field store is" in found.sentence] == ["corpus"]
