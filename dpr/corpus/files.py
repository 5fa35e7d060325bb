"""Input files, local or behind any fsspec URL: finding them, and reading them only as long as they stay the same."""

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, Any, Final, Literal

import fsspec
import fsspec.core
from fsspec.implementations.local import LocalFileSystem

from dpr.corpus.rows import InputFile
from dpr.errors import CorpusError

_BLOCK_BYTES: Final = 8 * 2**20
_VERSIONS: Final = ("ETag", "etag", "md5Hash", "generation")
_TIMES: Final = ("mtime", "LastModified", "last_modified", "created")


@dataclass(frozen=True)
class Found:
    """What one path of the recipe stands for."""

    root: str
    """Folder that the files are below (of a single file: its folder)."""
    files: list[InputFile]
    """Sorted by path."""
    is_folder: bool
    """Whether the path named a folder, which may hold files that are not part of the corpus."""


def find_files(path: str) -> Found:
    """The files that a path, glob or URL of the recipe stands for, but for hidden ones (`.name`) below it.

    Raises CorpusError if there is none or if they cannot be listed.
    """
    with _reading(path):
        filesystem, root = fsspec.core.url_to_fs(path)
        filesystem.invalidate_cache()
        kind = _kind(filesystem, root)
        if kind == "file":
            return Found(_url(filesystem, root.rpartition("/")[0]), [_file(filesystem, root)], is_folder=False)
        if kind == "directory":
            # by default a local folder that may not be opened is left out without a word
            strict = {"on_error": "raise"} if isinstance(filesystem, LocalFileSystem) else {}
            listed = filesystem.find(root, detail=True, **strict)
        else:
            listed = filesystem.glob(root, detail=True) if _is_glob(root) else {}
            root = re.split(r"[*?[]", root)[0].rpartition("/")[0]
        files = [
            _file(filesystem, name, info)
            for name, info in listed.items()
            if info["type"] != "directory" and not _is_hidden(name, root)
        ]
    if not files:
        what = "an empty folder" if kind else "a glob that matches no file" if _is_glob(path) else "not there"
        raise CorpusError(f"corpus {path} is {what}; give a file, a folder, a glob or a URL that holds passages")
    return Found(_url(filesystem, root), sorted(files, key=lambda file: file.path), kind == "directory")


def read_head(file: InputFile, length: int) -> bytes:
    """The first `length` bytes, or the whole file if it is shorter; CorpusError if it cannot be read."""
    with _reading(file.path):
        filesystem, name = fsspec.core.url_to_fs(file.path)
        return bytes(filesystem.cat_file(name, start=0, end=min(length, file.size_bytes)))


@contextmanager
def open_unchanged(path: str, identity: str, cache: Literal["readahead", "none"] = "readahead") -> Iterator[IO[bytes]]:
    """Open a file for reading; CorpusError if it differs from `identity` before or after it was read.

    The second look is taken only when the body ends normally, so read to the end inside the `with` block. `cache` is
    how a remote file is fetched: blocks ahead for reading in sequence, or exactly what is asked for.
    """
    with _reading(path):
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
    """`path` as seen from folder `root`, with forward slashes."""
    return PurePosixPath(path).relative_to(PurePosixPath(root)).as_posix()


@contextmanager
def _reading(path: str) -> Iterator[None]:
    try:
        yield
    except (CorpusError, GeneratorExit):
        raise
    except FileNotFoundError as error:
        raise CorpusError(f"corpus file {error.filename or path} is not there; check the path in the recipe") from error
    except OSError as error:
        raise CorpusError(f"corpus file {path} cannot be read: {error.strerror or error}") from error
    except Exception as error:
        # every fsspec backend lets errors of its own client library through (no credentials, no such protocol, …)
        if "://" not in path:
            raise
        raise CorpusError(f"corpus {path} cannot be read: {' '.join(str(error).split())}") from error


def _check_identity(path: str, identity: str) -> None:
    filesystem, name = fsspec.core.url_to_fs(path)
    filesystem.invalidate_cache()
    now = _file(filesystem, name).identity
    if now != identity:
        raise CorpusError(
            f"corpus file {path} changed while it was being scanned (it was {identity}, now it is {now}); "
            "start the run again when nothing writes to it"
        )


def _file(filesystem: Any, name: str, info: dict[str, Any] | None = None) -> InputFile:
    if isinstance(filesystem, LocalFileSystem):
        stat = os.stat(name)  # fsspec has the time as a float, which is too coarse
        return InputFile(name, stat.st_size, f"{stat.st_size}-{stat.st_mtime_ns}")
    if info is None or not any(info.get(field) for field in _VERSIONS):
        info = filesystem.info(name)  # a listing may give times in another form
    size = int(info["size"] or 0)
    version = next((str(info[field]) for field in _VERSIONS + _TIMES if info.get(field)), "")
    return InputFile(_url(filesystem, name), size, "-".join((str(size), version.strip('"'))))


def _kind(filesystem: Any, name: str) -> Literal["file", "directory", ""]:
    # isfile and isdir of fsspec take every error for a no: a refused connection would be a file that is not there
    try:
        return "directory" if filesystem.info(name)["type"] == "directory" else "file"
    except FileNotFoundError:
        return ""


def _url(filesystem: Any, name: str) -> str:
    return name if isinstance(filesystem, LocalFileSystem) else str(filesystem.unstrip_protocol(name))


def _is_hidden(name: str, root: str) -> bool:
    return any(part.startswith(".") for part in Path(relative_path(name, root)).parts)


def _is_glob(path: str) -> bool:
    return re.search(r"[*?[]", path) is not None
