"""Iceberg, Delta and Lance tables: the live data files of a table's newest version, as its log has them.

A data file of such a table never changes, and a version names the files that are live. So the files are listed as of
one version, and are then scanned like any others: a night reads those that were added since the previous version.
"""

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any, Final, Literal
from urllib.parse import unquote

import fsspec.core
import pyarrow as pa

from dpr.corpus.input_files import corpus_errors, list_file
from dpr.corpus.lance_fragments import lance_slices
from dpr.corpus.rows import InputFile, Slice
from dpr.errors import CorpusError
from dpr.recipe import CorpusConfig

TableKind = Literal["iceberg", "delta", "lance"]
_LIBRARIES: Final[dict[TableKind, str]] = {"iceberg": "pyiceberg", "delta": "deltalake", "lance": "lance"}
_ICEBERG_METADATA: Final = ".metadata.json"
_NOT_A_FOLDER: Final = re.compile(r"[*?[]|^https?://")


@dataclass(frozen=True)
class Table:
    """One version of a table."""

    version: str
    """Kind, place and version, in words."""
    files: list[InputFile] = field(default_factory=list)
    """Its live Parquet files, sorted by path."""
    slices: list[Slice] = field(default_factory=list)
    """The fragments of a Lance table."""


def open_table(path: str, corpus: CorpusConfig) -> Table | None:
    """Return the newest version of the table at `path`; None if there is no table.

    Raises CorpusError if the recipe says that there is one, if the library that reads it is not installed, and for
    tables whose rows are not those of their data files.
    """
    kind = _named_kind(corpus) or _kind_at(path)
    if kind is None:
        return None
    try:
        library = import_module(_LIBRARIES[kind])
    except ImportError as error:
        raise CorpusError(
            f"corpus {path} is a table of {kind}, which needs a library that is not installed ({error}); "
            f"install it with: pip install 'dpr[{kind}]'"
        ) from error
    with _table_errors(path, kind):
        if kind == "delta":
            return _delta(path, library)
        if kind == "iceberg":
            return _iceberg(path, corpus)
        version, slices = lance_slices(path, corpus, library)
        return Table(f"lance table {path}, version {version}", slices=slices)


def _named_kind(corpus: CorpusConfig) -> TableKind | None:
    return corpus.format if corpus.format in ("iceberg", "delta", "lance") else None


def _kind_at(path: str) -> TableKind | None:
    """Return the kind of table from the names in a folder."""
    if path.endswith(_ICEBERG_METADATA):
        return "iceberg"
    if _NOT_A_FOLDER.search(path):
        return None
    with corpus_errors(path):
        names = _names(path)
        if "_delta_log" in names:
            return "delta"
        if {"_versions", "data"} <= names:
            return "lance"
        if "metadata" in names and any(name.endswith(_ICEBERG_METADATA) for name in _names(f"{path}/metadata")):
            return "iceberg"
    return None


def _names(folder: str) -> set[str]:
    filesystem, root = fsspec.core.url_to_fs(folder)
    filesystem.invalidate_cache()
    if "://" not in folder and not os.path.isdir(root):
        return set()
    try:
        return {str(name).rstrip("/").rpartition("/")[2] for name in filesystem.ls(root, detail=False)}
    except (FileNotFoundError, NotADirectoryError):
        return set()


@contextmanager
def _table_errors(path: str, kind: TableKind) -> Iterator[None]:
    """Turn the libraries' own errors into CorpusError."""
    try:
        yield
    except CorpusError:
        raise
    except Exception as error:
        problem = " ".join(str(error).split())
        raise CorpusError(f"corpus {path} cannot be read as a table of {kind}: {problem}") from error


def _delta(path: str, library: Any) -> Table:
    table = library.DeltaTable(path)
    mapping = table.metadata().configuration.get("delta.columnMapping.mode", "none")
    if mapping != "none":
        raise CorpusError(
            f"corpus {path} is a Delta table whose files have other column names than the table (column mapping by "
            f"{mapping}), which is not supported; write it to a table without"
        )
    if "deletionVectors" in (table.protocol().reader_features or []):
        marked = sum(batch.num_rows for batch in table.deletion_vectors())
        if marked:
            raise CorpusError(
                f"corpus {path} is a Delta table with deletion vectors on {marked} files, which are not supported; "
                "rewrite these files (REORG TABLE … APPLY (PURGE)) and run again"
            )
    # the log has paths as encoded in URIs; the library encodes them once more
    names = [unquote(name) for name in pa.table(table.get_add_actions(flatten=True))["path"].to_pylist()]
    uris = [name if "://" in name else f"{path.rstrip('/')}/{name}" for name in names]
    return Table(f"delta table {path}, version {table.version()}", _files(uris))


def _iceberg(path: str, corpus: CorpusConfig) -> Table:
    table = import_module("pyiceberg.table").StaticTable.from_metadata(_newest_metadata(path))
    snapshot = table.current_snapshot()
    if snapshot is None:
        return Table(f"iceberg table {path} without a snapshot")
    # pyiceberg refuses to list the files of a table with deletes by equality, so they are looked for beforehand
    by_equality = snapshot.summary is not None and int(snapshot.summary["total-equality-deletes"] or 0)
    tasks = [] if by_equality else list(table.scan().plan_files())
    if by_equality or any(task.delete_files for task in tasks):
        raise CorpusError(
            f"corpus {path} is an Iceberg table with delete files, which are not supported; compact it "
            "(rewrite_data_files) and run again"
        )
    if others := {str(task.file.file_format).rpartition(".")[2] for task in tasks} - {"PARQUET"}:
        raise CorpusError(f"corpus {path} is an Iceberg table of {min(others)} files; only Parquet is supported")
    _check_renames(path, table, corpus)
    return Table(
        f"iceberg table {path}, snapshot {snapshot.snapshot_id}", _files([task.file.file_path for task in tasks])
    )


def _check_renames(path: str, table: Any, corpus: CorpusConfig) -> None:
    """Raise CorpusError if a column of the recipe had another name: Iceberg's older files keep that name."""
    columns = corpus.columns
    wanted = {str(name) for name in (columns.id, columns.title, columns.text, *columns.extra)}
    ids = {field.name: field.field_id for field in table.schema().fields if field.name in wanted}
    for schema in table.schemas().values():
        for field_ in schema.fields:
            is_other = field_.field_id in ids.values() and ids.get(field_.name) != field_.field_id
            if is_other or ids.get(field_.name, field_.field_id) != field_.field_id:
                raise CorpusError(
                    f"corpus {path} is an Iceberg table in which a column of the recipe was renamed (once "
                    f"{field_.name!r}), which is not supported; write it to a new table"
                )


def _newest_metadata(path: str) -> str:
    """Return the newest metadata file of a table without a catalogue: the one with the highest number."""
    if path.endswith(_ICEBERG_METADATA):
        return path
    folder = f"{path.rstrip('/')}/metadata"
    numbered = [(_number(name), name) for name in _names(folder) if name.endswith(_ICEBERG_METADATA)]
    if not numbered:
        raise CorpusError(f"corpus {path} is no Iceberg table: it has no metadata/*{_ICEBERG_METADATA}")
    return f"{folder}/{max(numbered)[1]}"


def _number(name: str) -> int:
    """Return the number of a metadata file: `00003-….metadata.json` of catalogues, `v3.metadata.json` of Hadoop."""
    found = re.match(r"v?(\d+)", name)
    return int(found[1]) if found else -1


def _files(uris: list[str]) -> list[InputFile]:
    return sorted((list_file(uri) for uri in uris), key=lambda file: file.path)
