"""Planning a scan: from the corpus of a recipe to slices that can be read independently of each other."""

import os
from collections.abc import Callable, Mapping, Set
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Final, cast

from dpr.corpus.corpus_checks import NO_FORMAT, check_apart, check_extra, check_left_out, check_one_format
from dpr.corpus.detect import detect, document_kind, is_document
from dpr.corpus.documents import document_slices
from dpr.corpus.folders import choose_files, is_data, name_some, without_abouts
from dpr.corpus.input_files import find_files, refuse_database
from dpr.corpus.parquet import parquet_slices
from dpr.corpus.rows import FileKind, InputFile, LeftOut, ReadFormat, Slice, Windows
from dpr.corpus.table_versions import open_table
from dpr.errors import OtherFileError
from dpr.fingerprint import fingerprint
from dpr.plurals import counted
from dpr.recipe import CorpusConfig
from dpr.store import PARALLEL_READS

_NOTHING_KNOWN: Final[Mapping[str, FileKind]] = MappingProxyType({})
_UNCUT: Final = ("csv", "json", "arrow")
"""Formats that can only be read from the beginning."""


@dataclass(frozen=True)
class CorpusPlan:
    """The slices to read, and what planning found about the files."""

    slices: list[Slice]
    """In a stable order: by path of the recipe, then by path of the file, then by position in it."""
    kinds: dict[str, FileKind]
    """The kinds of files that have to be opened to know them, by `kind_key`; pass it as `known` on the next night."""
    left_out: list[LeftOut] = field(default_factory=list)
    """Files of folders that are not read."""
    hidden: int = 0
    """Files of folders whose names, or those of their folders, begin with `_` or `.`."""
    empty: int = 0
    """Files without a row."""
    tables: list[str] = field(default_factory=list)
    """Tables that were read, with their versions, in words."""

    def notes(self) -> list[str]:
        """Return notes on the files for the user, a sentence each: above all, which are not read."""
        notes = [f"read as of {table}" for table in self.tables]
        if self.left_out:
            notes.append(f"{counted(len(self.left_out), 'file')} left out: {name_some(self.left_out)}")
        if self.empty:
            notes.append(f"{counted(self.empty, 'file')} without rows")
        if self.hidden:
            notes.append(f"{counted(self.hidden, 'file')} hidden: names that begin with _ or . are not read")
        return notes


@dataclass(frozen=True)
class _Source:
    """What one path of the recipe stands for."""

    root: str
    files: list[InputFile]
    """Sorted by path."""
    is_folder: bool = False
    takes_all: bool = False
    """Whether it is a folder to which every file belongs that comes into it."""
    left_out: list[LeftOut] = field(default_factory=list)
    hidden: int = 0
    table: str = ""
    """Kind and version of a table, in words."""
    slices: list[Slice] = field(default_factory=list)
    """Those of a table that has no files of a format of ours."""


def plan_slices(
    corpus: CorpusConfig,
    known: Mapping[str, FileKind] = _NOTHING_KNOWN,
    windows: Windows | None = None,
    store: str | None = None,
) -> CorpusPlan:
    """List the corpus, find the kind of each file, and cut the files into slices.

    `windows` says how long texts are split, if the recipe wants that. `store` is where the collection is to lie: raises
    RecipeError if that is in a folder whose files are read.

    A file whose kind is in `known` (`CorpusPlan.kinds` of an earlier night) is listed and not opened. Of every other
    file the beginning is read, or the footer if it is Parquet. Raises CorpusError if there is no row, a file cannot be
    read, its format differs from that of the recipe or of the other files, or a column is missing. A file of a folder
    that cannot be read and is not named as data is left out, unless the recipe is strict.
    """
    sources = _list_sources(corpus)
    if store is not None:
        check_apart(store, [source.root for source in sources if source.takes_all])
    files = [file for source in sources for file in source.files]
    keys = {file.path: kind_key(file, corpus) for file in files if not is_document(file, corpus)}
    may_fail = {file.path for source in sources if source.is_folder for file in source.files if not is_data(file.path)}
    unknown = [file for file in files if file.path in keys and keys[file.path] not in known]
    found = _detect_all(unknown, corpus, may_fail)
    remembered = {key: found.get(path) or known[key] for path, key in keys.items()}
    documents = {file.path: _or_unreadable(document_kind, file, may_fail) for file in files if file.path not in keys}
    kinds = {file.path: documents.get(file.path) or remembered[keys[file.path]] for file in files}
    left_out = [left for source in sources for left in (*source.left_out, *_unread(source, kinds))]
    unread = {left.path for left in left_out}
    kinds = {path: kind for path, kind in kinds.items() if path not in unread}
    check_one_format(corpus, kinds)
    slices = [slice_ for source in sources for slice_ in _source_slices(source, kinds, corpus.slice_bytes)]
    check_left_out(corpus, slices, left_out, kinds)
    check_extra(corpus, kinds)
    if corpus.splits_long:
        slices = [slice_.model_copy(update={"windows": windows}) for slice_ in slices]
    return CorpusPlan(
        slices,
        remembered,
        left_out,
        hidden=sum(source.hidden for source in sources),
        empty=sum(kind.format == "empty" for kind in kinds.values()),
        tables=[source.table for source in sources if source.table],
    )


def kind_key(file: InputFile, corpus: CorpusConfig) -> str:
    """Return the fingerprint of everything that decides the kind of a file: the file, and how the recipe reads it."""
    recipe = corpus.model_dump(mode="json", include={"format", "columns", "names", "quoting"})
    return fingerprint({"path": file.path, "identity": file.identity, "recipe": recipe})


def _list_sources(corpus: CorpusConfig) -> list[_Source]:
    """List the files of each path of the recipe; a file that several paths name belongs to the first of them."""
    if isinstance(corpus.path, str):
        return [_source(corpus.path, corpus)]
    listed: set[str] = set()
    sources: list[_Source] = []
    for path in corpus.path:
        source = _source(path, corpus)
        real = {file.path: file.path if "://" in file.path else os.path.realpath(file.path) for file in source.files}
        files = [file for file in source.files if real[file.path] not in listed]
        listed.update(real.values())
        sources.append(replace(source, files=files))
    return sources


def _source(path: str, corpus: CorpusConfig) -> _Source:
    refuse_database(path)
    if (table := open_table(path, corpus)) is not None:
        return _Source(path, table.files, table=table.version, slices=table.slices)
    found = find_files(path)
    if not found.is_folder:
        return _Source(found.root, found.files, hidden=found.hidden)
    files, left_out, is_listed = choose_files(path, found, corpus.format)
    takes_all = not is_listed
    return _Source(found.root, files, is_folder=True, takes_all=takes_all, left_out=left_out, hidden=found.hidden)


def _detect_all(files: list[InputFile], corpus: CorpusConfig, may_fail: Set[str]) -> dict[str, FileKind]:
    """Find the kinds of files, by path, opening many files at a time."""

    def kind_of(file: InputFile) -> FileKind:
        return _or_unreadable(lambda file: detect(file, corpus), file, may_fail)

    with ThreadPoolExecutor(PARALLEL_READS) as threads:
        return dict(zip((file.path for file in files), threads.map(kind_of, files), strict=True))


def _or_unreadable(kind_of: Callable[[InputFile], FileKind], file: InputFile, may_fail: Set[str]) -> FileKind:
    """Return the kind of a file; `unreadable` if it may fail and does."""
    try:
        return kind_of(file)
    except OtherFileError as error:
        if file.path not in may_fail:
            raise
        return FileKind(format="unreadable", reason=_first_clause(file, error))


def _first_clause(file: InputFile, error: OtherFileError) -> str:
    """Return what is wrong with a file, without its name and the remedy."""
    return str(error).removeprefix(f"corpus file {file.path} ").partition("; ")[0]


def _unread(source: _Source, kinds: Mapping[str, FileKind]) -> list[LeftOut]:
    """Return the files of a folder that turned out not to belong to the corpus."""
    left_out = [
        LeftOut(path=file.path, reason=kinds[file.path].reason)
        for file in source.files
        if kinds[file.path].format == "unreadable"
    ]
    documents = {file.path for file in source.files if kinds[file.path].format == "documents"}
    has_data = any(kinds[file.path].format not in ("documents", *NO_FORMAT) for file in source.files)
    if source.is_folder and has_data and documents:
        left_out += without_abouts(source.files, documents)
    return left_out


def _source_slices(source: _Source, kinds: Mapping[str, FileKind], slice_bytes: int) -> list[Slice]:
    files = [(file, kinds[file.path]) for file in source.files if file.path in kinds]
    documents = [file for file, kind in files if kind.format == "documents"]
    slices = document_slices(source.root, documents, slice_bytes) if any(f.size_bytes for f in documents) else []
    for file, kind in files:
        if kind.format == "parquet":
            slices += parquet_slices(file, kind, slice_bytes)
        elif kind.format not in ("documents", *NO_FORMAT):
            slices += _line_slices(file, kind, slice_bytes)
    return [*slices, *source.slices]


def _line_slices(file: InputFile, kind: FileKind, slice_bytes: int) -> list[Slice]:
    # a compressed file can only be read from its beginning, too
    step = file.size_bytes if kind.compression or kind.format in _UNCUT else slice_bytes
    bounds = [(start, min(start + step, file.size_bytes)) for start in range(0, file.size_bytes, step)]
    return [
        Slice(
            path=file.path,
            format=cast(ReadFormat, kind.format),
            start=start,
            stop=stop,
            size_bytes=stop - start,
            identity=file.identity,
            compression=kind.compression,
            fields=kind.fields,
            columns=kind.columns,
            header=kind.header,
            delimiter=kind.delimiter,
        )
        for start, stop in bounds
    ]
