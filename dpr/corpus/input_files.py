"""Input files, local or behind any fsspec URL: listing them, and reading them only while they stay the same."""

import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import IO, Any, Final, Literal

import fsspec
import fsspec.core
from fsspec.implementations.local import LocalFileSystem
from fsspec.utils import glob_translate

from dpr.corpus.local_files import find_local
from dpr.corpus.rows import InputFile, is_utf8
from dpr.errors import CorpusError
from dpr.hidden_names import is_hidden_name
from dpr.plurals import counted
from dpr.store.reasons import unreadable

_BLOCK_BYTES: Final = 8 * 2**20
_Info = dict[str, Any]
"""What fsspec knows about a file; its fields depend on the file system."""
_VERSIONS: Final = ("ETag", "etag", "md5Hash", "generation", "blob_id")
_DATABASES: Final = (
    "postgres|redshift|mysql|mariadb|mssql|oracle|sqlite|duckdb|snowflake|bigquery|clickhouse|trino|presto|mongodb"
)
_DATABASE: Final = re.compile(rf"(jdbc|adbc):|({_DATABASES})[\w+]*://")
_TIMES: Final = ("mtime", "LastModified", "last_modified", "created")


@dataclass(frozen=True)
class Found:
    """The files that one path of the recipe stands for."""

    root: str
    """Folder that holds the files, at any depth."""
    files: list[InputFile]
    """Sorted by path."""
    is_folder: bool
    """Whether the path named a folder, which may hold files that are not part of the corpus."""
    hidden: int = 0
    """How many files are not listed since their names, or those of their folders, begin with `_` or `.`."""


def find_files(path: str, what: str = "corpus") -> Found:
    """List the files that a path, glob or URL of the recipe stands for, without hidden ones below it.

    A name that begins with `_` or `.` is hidden, with all that is below it, as Spark, Hive and Arrow have it. Linked
    files and folders are followed. Raises CorpusError if there is no file, if they cannot be listed, or if a name is
    not UTF-8. `what` is what that message calls the files.
    """
    with corpus_errors(path):
        filesystem, root = fsspec.core.url_to_fs(path)
        filesystem.invalidate_cache()
        info = _info(filesystem, root)
        is_folder = info is not None and info["type"] == "directory"
        if info is not None and not is_folder:
            files = [_file(filesystem, root, info)]
            return Found(_url(filesystem, root.rpartition("/")[0]), _with_utf8_names(files), is_folder=False)
        pattern, root = root, root if is_folder else re.split(r"[*?[]", root)[0].rpartition("/")[0]
        listed = _listed(filesystem, root, None if is_folder else pattern)
        shows_all = not is_folder and _is_hidden(pattern, root)  # the glob itself names a hidden file or folder
        files = [
            _file(filesystem, name, info) for name, info in listed.items() if shows_all or not _is_hidden(name, root)
        ]
    if not files:
        hidden = f" except {counted(len(listed), 'hidden file')} (names that begin with _ or .)" if listed else ""
        raise CorpusError(f"{what} {path} is {_nothing_at(path, is_folder=is_folder, hidden=hidden)}")
    files.sort(key=lambda file: file.path)
    return Found(_url(filesystem, root), _with_utf8_names(files), is_folder, len(listed) - len(files))


def refuse_database(path: str) -> None:
    """Raise CorpusError for the URL of a database, which no reader of files should see."""
    if database := _DATABASE.match(path):  # the rest of the URL may hold a password
        raise CorpusError(
            f"corpus {database[0]}… is a database, and dpr reads files; write the result of your query to Parquet (by "
            "pyarrow and ADBC, or DuckDB's COPY) and name its folder"
        )


def _nothing_at(path: str, *, is_folder: bool, hidden: str) -> str:
    """Describe a path that stands for no file, and say what to give instead."""
    advice = "give a file, a folder, a glob or a URL of files"
    if is_folder or _is_glob(path):
        return f"{'an empty folder' if is_folder else 'a glob that matches no file'}{hidden}; {advice}"
    return f"not there; {advice}; a data set of the Hugging Face hub is hf://datasets/ORG/NAME"


def list_file(path: str) -> InputFile:
    """Return the present state of one file, named by its path or URL; CorpusError if it is not there."""
    with corpus_errors(path):
        filesystem, name = fsspec.core.url_to_fs(path)
        return _file(filesystem, name)


def _listed(filesystem: Any, root: str, pattern: str | None) -> dict[str, _Info | None]:
    """Return the files below `root` that match a glob, or all, with what is known about them."""
    if isinstance(filesystem, LocalFileSystem):
        if pattern is None:
            return dict.fromkeys(find_local(root))
        if not _is_glob(pattern):
            return {}
        depth = None if "**" in pattern else pattern.removeprefix(root).strip("/").count("/") + 1
        matches = re.compile(glob_translate(pattern)).match
        return {name: None for name in find_local(root, depth) if matches(name)}
    if pattern is None:
        found = filesystem.find(root, detail=True)
    else:
        found = filesystem.glob(pattern, detail=True) if _is_glob(pattern) else {}
    return {name: info for name, info in found.items() if info["type"] != "directory"}


@contextmanager
def open_unchanged(path: str, identity: str, cache: Literal["readahead", "none"] = "readahead") -> Iterator[IO[bytes]]:
    """Open a file for reading, and raise CorpusError if it differs from `identity` before or after it is read.

    The second check is made only if the `with` block ends normally, so read inside it to the end. `cache` says how a
    remote file is fetched: `readahead` in large blocks for reading in sequence, `none` exactly the bytes that are read.
    """
    with corpus_errors(path):
        _check_identity(path, identity)
        filesystem, name = fsspec.core.url_to_fs(path)
        if isinstance(filesystem, LocalFileSystem):
            file: IO[bytes] = open(name, "rb", buffering=2**20)  # noqa: SIM115 (closed below)
        else:
            file = filesystem.open(name, "rb", block_size=_BLOCK_BYTES, cache_type=cache)
        with file:
            yield file
        _check_identity(path, identity)


def relative_path(path: str, root: str) -> str:
    """Return `path` relative to the folder `root`, with forward slashes."""
    return PurePosixPath(path).relative_to(PurePosixPath(root)).as_posix()


@contextmanager
def corpus_errors(path: str) -> Iterator[None]:
    """Turn the errors of reading `path` into CorpusError."""
    try:
        yield
    except CorpusError:
        raise
    except FileNotFoundError as error:
        raise CorpusError(f"corpus file {error.filename or path} is not there; check the path in the recipe") from error
    except OSError as error:
        raise CorpusError(f"corpus file {path} cannot be read: {unreadable(path, error)}{_advice(path)}") from error
    except Exception as error:
        # fsspec backends raise errors of their own client libraries (no credentials, unknown protocol, …)
        if "://" not in path:
            raise
        raise CorpusError(f"corpus {path} cannot be read: {unreadable(path, error)}{_advice(path)}") from error


def _advice(path: str) -> str:
    """Return what to do without internet, if a path belongs to the Hugging Face hub."""
    if not path.startswith("hf://"):
        return ""
    return "; without internet, give a folder that datasets.load_dataset(…).save_to_disk(FOLDER) made elsewhere"


def _check_identity(path: str, identity: str) -> None:
    filesystem, name = fsspec.core.url_to_fs(path)
    filesystem.invalidate_cache()
    now = _file(filesystem, name).identity
    if now != identity:
        raise CorpusError(
            f"corpus file {path} changed while it was being scanned (it was {identity}, now it is {now}); "
            "start the run again when nothing writes to it"
        )


def _file(filesystem: Any, name: str, info: _Info | None = None) -> InputFile:
    if isinstance(filesystem, LocalFileSystem):
        stat = os.stat(name)  # fsspec gives the time as a float, which is too coarse
        return InputFile(path=name, size_bytes=stat.st_size, identity=f"{stat.st_size}-{stat.st_mtime_ns}")
    if info is None or not any(info.get(field) for field in _VERSIONS):
        info = filesystem.info(name)  # the times of a listing may have another form
    size = int(info["size"] or 0)
    version = next((str(info[field]) for field in _VERSIONS + _TIMES if info.get(field)), "")
    identity = "-".join((str(size), version.strip('"')))
    return InputFile(path=_url(filesystem, name), size_bytes=size, identity=identity)


def _info(filesystem: Any, name: str) -> _Info | None:
    """Return what fsspec knows about a file or folder, or None if there is none of that name."""
    # isfile and isdir of fsspec return False after any error, even a refused connection
    try:
        return dict(filesystem.info(name))
    except FileNotFoundError:
        return None


def _with_utf8_names(files: list[InputFile]) -> list[InputFile]:
    """Return `files`; raise CorpusError if one has a name that a store could not hold."""
    for file in files:
        if not is_utf8(file.path):
            encoding = sys.getfilesystemencoding()
            advice = "rename it" if encoding == "utf-8" else f"the locale's encoding is {encoding}: set LC_ALL=C.UTF-8"
            raise CorpusError(f"corpus file {file.path!r} has a name that is not UTF-8; {advice}")
    return files


def _url(filesystem: Any, name: str) -> str:
    return name if isinstance(filesystem, LocalFileSystem) else str(filesystem.unstrip_protocol(name))


def _is_hidden(name: str, root: str) -> bool:
    return any(map(is_hidden_name, PurePosixPath(relative_path(name, root)).parts))


def _is_glob(path: str) -> bool:
    return re.search(r"[*?[]", path) is not None
