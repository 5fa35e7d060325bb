"""Folders of documents: text, Markdown, HTML and PDF."""

from pathlib import Path

import pytest
from matplotlib.figure import Figure

from dpr.corpus import documents, rich_documents
from dpr.corpus.documents import document_title
from dpr.corpus.rows import Passage
from dpr.corpus.slices import plan_slices
from dpr.errors import CorpusError
from dpr.recipe import CorpusConfig
from tests.corpus.reading import read


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "sub").mkdir()
    (tmp_path / ".git").mkdir()
    (tmp_path / "b.txt").write_bytes("\ufeffone  two\r\nthree\tföur\n\nfive".encode())
    (tmp_path / "sub" / "a.md").write_text("```sh\n# no heading\n```\n\n##  The   title ##\n\nWords.\n")
    (tmp_path / ".git" / "notes.txt").write_text("hidden")
    (tmp_path / "code.py").write_text("not a document")
    return tmp_path


def test_documents_become_passages_with_readable_ids_and_titles(folder: Path) -> None:
    found = read(folder, passage_words=4)
    assert [row.passage for row in found] == [
        Passage("b.txt#0", "b", "one two three föur"),
        Passage("b.txt#1", "b", "five"),
        Passage("sub/a.md#0", "The title", "```sh # no heading"),
        Passage("sub/a.md#1", "The title", "``` ## The title"),
        Passage("sub/a.md#2", "The title", "## Words."),
    ]
    assert [row.position for row in found] == list(range(5))
    assert {row.source for row in found} == {str(folder / "b.txt"), str(folder / "sub" / "a.md")}


def test_passages_do_not_depend_on_slices_or_on_how_the_folder_is_named(folder: Path) -> None:
    whole = [row.passage for row in read(folder, passage_words=4, overlap_words=1)]
    assert [row.passage for row in read(folder, passage_words=4, overlap_words=1, slice_bytes=1)] == whole
    for path in (
        f"{folder}/",
        f"file://{folder}",
        f"{folder}/**/*[td]",
        [f"{folder}/*.txt", f"{folder}/b.txt", f"{folder}"],
    ):
        assert [row.passage for row in read(path, passage_words=4, overlap_words=1)] == whole


def test_a_document_that_cannot_be_used_is_one_row_and_affects_no_other(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(documents, "MAX_DOCUMENT_BYTES", 2**20)
    (folder / "c.txt").write_bytes(b"latin \xe9")
    (folder / "d.txt").write_text(" \n")
    (folder / "e.txt").write_bytes(b"")
    (folder / "f.txt").write_text("word " * 2**18)
    (folder / "g.txt").write_text("fine fine fine fine nu\0l")
    found = read(folder, passage_words=4)
    assert [(Path(row.source).name, row.reason) for row in found if not row.passage] == [
        ("c.txt", "bad UTF-8"),
        ("d.txt", "no text"),
        ("e.txt", "no text"),
        ("f.txt", "document of over 1 MiB"),
        ("g.txt", "NUL characters"),
    ]
    assert found[2].raw == b"latin \xe9"
    assert sum(row.passage is not None for row in found) == 6
    assert [row.position for row in found] == list(range(len(found)))


def test_documents_without_any_byte_are_an_empty_corpus(tmp_path: Path) -> None:
    (tmp_path / "a.txt").touch()
    with pytest.raises(CorpusError, match="is empty"):
        read(tmp_path)


@pytest.mark.parametrize(
    ("name", "text", "title"),
    [
        ("deep/notes.md", "intro\n# First #\n# Second", "First"),
        ("notes.md", "#hashtag\n####### seven\n#  \n", "notes"),
        ("notes.txt", "# not markdown", "notes"),
        ("v1.2.MD", "~~~\n# code\n~~~\n### C# 12 ##", "C# 12"),
        ("archive.tar.txt", "x", "archive.tar"),
    ],
)
def test_the_title_is_the_first_heading_or_the_name(name: str, text: str, title: str) -> None:
    assert document_title(name, text) == title


def test_text_is_taken_from_html_and_pdf(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    page = "<html><head><meta charset=latin-1><title>A\n page</title><style>p {}</style></head>"
    (tmp_path / "a.html").write_bytes(f"{page}<p>one <b>tw\xf6</b></p><script>x()</script></html>".encode("latin-1"))
    (tmp_path / "b.htm").write_text("<h1>Heading</h1><p>text &amp; more")
    figure = Figure()
    figure.text(0.1, 0.5, "words of a page")
    figure.savefig(tmp_path / "c.pdf", metadata={"Title": "A figure"})
    (tmp_path / "d.pdf").write_bytes(b"%PDF-1.7 damaged")
    (tmp_path / "e.html").write_text("<p> </p>")
    found = read(tmp_path)
    assert [row.passage for row in found if row.passage] == [
        Passage("a.html#0", "A page", "one twö"),
        Passage("b.htm#0", "Heading", "Heading text & more"),
        Passage("c.pdf#0", "A figure", "words of a page"),
    ]
    assert [row.reason.partition(":")[0] for row in found if not row.passage] == ["PDF that cannot be read", "no text"]
    assert caplog.records == [], "oddities of a PDF become rows in quarantine, not lines on the terminal"
    monkeypatch.setattr(rich_documents, "find_spec", lambda name: None if name == "pypdf" else object())
    left_out = plan_slices(CorpusConfig(path=str(tmp_path))).left_out
    reason = "needs a library that is not installed: pip install 'dpr[documents]'"
    assert [(Path(file.path).name, file.reason) for file in left_out] == [("c.pdf", reason), ("d.pdf", reason)]
    with pytest.raises(CorpusError, match=r"c\.pdf needs a library"):
        read(tmp_path / "c.pdf")
