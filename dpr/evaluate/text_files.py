"""Files of questions and judgements: small texts, local or behind any fsspec URL, plain or compressed."""

import lzma
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import IO, cast

import fsspec
import fsspec.core

from dpr.corpus.signatures import UTF8_BOM
from dpr.errors import RecipeError
from dpr.store.reasons import unreadable

_DAMAGED = (OSError, EOFError, UnicodeError, zlib.error, lzma.LZMAError)


@contextmanager
def open_bytes(path: str) -> Iterator[IO[bytes]]:
    """Open a file for reading, unpacked if its name ends in .gz, .bz2 or .xz; RecipeError if it cannot be read."""
    try:
        with fsspec.open(path, "rb", compression="infer") as file:
            yield cast(IO[bytes], file)
    except _DAMAGED as error:
        raise _unreadable(path, error) from error
    except Exception as error:
        # fsspec backends raise errors of their own client libraries
        if "://" not in path or isinstance(error, RecipeError):
            raise
        raise _unreadable(path, error) from error


def read_lines(path: str) -> Iterator[tuple[int, str]]:
    """Yield number and text of each line that is not blank; RecipeError if the file is no UTF-8 text."""
    with open_bytes(path) as file:
        for number, line in enumerate(file, 1):
            text = line.removeprefix(UTF8_BOM).decode().rstrip("\r\n")
            if text and not text.isspace():
                yield number, text


def read_text(path: str) -> str:
    """Return a whole file; RecipeError if it is no UTF-8 text."""
    with open_bytes(path) as file:
        return file.read().removeprefix(UTF8_BOM).decode()


def is_folder(path: str) -> bool:
    """Return whether a path or URL is a folder; RecipeError if that cannot be determined."""
    try:
        filesystem, name = fsspec.core.url_to_fs(path)
        return bool(filesystem.isdir(name))
    except Exception as error:  # no such protocol, no credentials, …
        raise _unreadable(path, error) from error


def _unreadable(path: str, error: Exception) -> RecipeError:
    if isinstance(error, FileNotFoundError):
        return RecipeError(f"file {path} is not there; check its name, and the folder that it is relative to")
    return RecipeError(f"file {path} cannot be read: {unreadable(path, error)}")


def first_file(paths: Sequence[str]) -> str | None:
    """Return the first of these files that exists, plain or gzipped."""
    for path in (name for plain in paths for name in (plain, f"{plain}.gz")):
        filesystem, name = fsspec.core.url_to_fs(path)
        if filesystem.isfile(name):
            return path
    return None


def folder_of(path: str) -> str:
    """Return the folder that a file lies in."""
    return path.rpartition("/")[0] or "."
