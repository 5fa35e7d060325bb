"""What planning remembers of a file from one night to the next, in a file system that counts what is opened."""

import gzip
import io
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any, ClassVar

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from dpr.corpus.rows import FileKind
from dpr.corpus.slices import plan_slices
from dpr.errors import CorpusError
from dpr.recipe import Columns, CorpusConfig

JSONL = b'{"id": "1", "title": "T", "text": "x"}\n{"id": "2", "title": "T", "text": "y"}\n'
COUNT = 4
"""Files in each corpus."""


class CountingFiles(MemoryFileSystem):
    """Keeps the files below `counted://` in memory, and counts how often each is opened to be read, or fetched."""

    protocol = "counted"
    store: ClassVar[dict[str, Any]] = {}
    opened: ClassVar[Counter[str]] = Counter()
    before_open: ClassVar[list[Callable[[str], object]]] = []

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return str(super()._strip_protocol(path.replace("counted://", "memory://")))

    def _open(self, path: str, mode: str = "rb", *args: Any, **kwargs: Any) -> Any:
        if mode == "rb":
            self._count(path)
        return super()._open(path, mode, *args, **kwargs)

    def cat_file(self, path: str, *args: Any, **kwargs: Any) -> Any:
        self._count(path)
        return super().cat_file(path, *args, **kwargs)

    def _count(self, path: str) -> None:
        self.opened[path.rpartition("/")[2]] += 1
        for hook in self.before_open:
            hook(path)


def parquet() -> bytes:
    sink = io.BytesIO()
    columns = {name: [f"{name} {number}" for number in range(10)] for name in ("id", "title", "text")}
    pq.write_table(pa.table(columns), sink, row_group_size=4)
    return sink.getvalue()


CONTENTS = {
    ".jsonl": JSONL,
    ".jsonl.gz": gzip.compress(JSONL),
    ".tsv": b"id\ttext\ttitle\n3\ttsv\tT\n",
    ".parquet": parquet(),
    ".txt": b"a document",
}
OPENED = [".jsonl", ".jsonl.gz", ".tsv", ".parquet"]
"""Suffixes of the files that must be opened to know what they are."""


@pytest.fixture
def files() -> Iterator[MemoryFileSystem]:
    """Give an empty file system that has counted nothing yet."""
    fsspec.register_implementation("counted", CountingFiles, clobber=True)
    for state in (CountingFiles.store, CountingFiles.opened, CountingFiles.before_open):
        state.clear()
    yield fsspec.filesystem("counted")
    CountingFiles.store.clear()


def make_corpus(files: MemoryFileSystem, suffix: str, **fields: Any) -> CorpusConfig:
    """Write COUNT files named `0.SUFFIX`, `1.SUFFIX`, …"""
    for number in range(COUNT):
        files.pipe(f"/corpus/{number}{suffix}", CONTENTS[suffix])
    return CorpusConfig(path="counted://corpus/", **fields)


@pytest.mark.parametrize("suffix", OPENED)
def test_each_file_is_opened_once_and_all_at_the_same_time(files: MemoryFileSystem, suffix: str) -> None:
    corpus = make_corpus(files, suffix)
    all_are_open = threading.Barrier(COUNT)
    files.before_open.append(lambda _: all_are_open.wait(timeout=30))
    plan = plan_slices(corpus)
    assert files.opened == {f"{number}{suffix}": 1 for number in range(COUNT)}
    assert [slice_.path for slice_ in plan.slices] == [f"counted:///corpus/{number}{suffix}" for number in range(COUNT)]
    assert len(plan.kinds) == COUNT


@pytest.mark.parametrize("suffix", OPENED)
def test_a_second_night_opens_no_file_and_plans_the_same(files: MemoryFileSystem, suffix: str) -> None:
    corpus = make_corpus(files, suffix)
    first = plan_slices(corpus)
    stored = {key: kind.to_bytes() for key, kind in first.kinds.items()}
    files.opened.clear()
    again = plan_slices(corpus, {key: FileKind.model_validate_json(data) for key, data in stored.items()})
    assert files.opened == {}
    assert again == first
    assert again.slices == plan_slices(corpus).slices, "and the same as without remembering"


def test_only_new_and_changed_files_are_opened_and_files_that_are_gone_are_forgotten(files: MemoryFileSystem) -> None:
    corpus = make_corpus(files, ".parquet")
    first = plan_slices(corpus)
    files.opened.clear()
    files.pipe("/corpus/1.parquet", parquet())
    files.pipe("/corpus/new.parquet", parquet())
    files.rm("/corpus/2.parquet")
    second = plan_slices(corpus, first.kinds)
    assert files.opened == {"1.parquet": 1, "new.parquet": 1}
    assert len(second.kinds) == COUNT
    assert len(second.kinds.keys() & first.kinds.keys()) == COUNT - 2


@pytest.mark.parametrize(
    ("fields", "is_opened_again"),
    [
        ({"format": "jsonl"}, True),
        ({"columns": Columns(title=None)}, True),
        ({"slice_bytes": 1000}, False),
        ({"passage_words": 7}, False),
        ({"overlap_words": 7}, False),
        ({"max_passage_chars": 7}, False),
        ({"path": ["counted://corpus/1.jsonl", "counted://corpus"]}, False),
    ],
)
def test_files_are_opened_again_if_the_recipe_changes_what_they_can_be(
    files: MemoryFileSystem, fields: dict[str, Any], is_opened_again: bool
) -> None:
    corpus = make_corpus(files, ".jsonl")
    known = plan_slices(corpus).kinds
    files.opened.clear()
    plan = plan_slices(corpus.model_copy(update=fields), known)
    assert sum(files.opened.values()) == (COUNT if is_opened_again else 0)
    assert len(plan.kinds) == COUNT


def test_parquet_of_other_slices_is_planned_from_what_is_known(files: MemoryFileSystem) -> None:
    corpus = make_corpus(files, ".parquet")
    known = plan_slices(corpus).kinds
    assert {kind.row_group_rows for kind in known.values()} == {(4, 4, 2)}
    finer = plan_slices(corpus.model_copy(update={"slice_bytes": 1}), known)
    assert [(s.start, s.stop) for s in finer.slices] == [(0, 1), (1, 2), (2, 3)] * COUNT
    assert sum(files.opened.values()) == COUNT


@pytest.mark.parametrize("format_", ["auto", "documents"])
def test_documents_are_neither_opened_nor_remembered(files: MemoryFileSystem, format_: str) -> None:
    plan = plan_slices(make_corpus(files, ".txt", format=format_))
    assert (len(plan.slices), plan.kinds, files.opened) == (1, {}, {})


@pytest.mark.parametrize("suffix", OPENED)
def test_a_file_that_changes_while_it_is_looked_at_is_not_remembered(files: MemoryFileSystem, suffix: str) -> None:
    corpus = make_corpus(files, suffix)
    files.before_open.append(lambda path: files.pipe(path, CONTENTS[suffix]))
    with pytest.raises(CorpusError, match="changed while it was being scanned"):
        plan_slices(corpus)
