"""The contract of every store. Names are relative POSIX paths; objects never change once they are created."""

import contextlib
import os
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from dpr.errors import StoreError
from dpr.store.reasons import reason_of, remedy_of
from dpr.store.temporary import OTHER_CACHE, OTHER_TEMPORARY

TEMPORARY_PREFIX = ".tmp-"
"""Prefix of unfinished files; no object may have such a name."""
PROBES = "probes/"
"""Prefix of short-lived objects that test what a store can do."""
PARALLEL_READS = 16
"""Objects or files that a process reads at once: reading waits for disks and for object stores."""


@dataclass(frozen=True)
class ObjectInfo:
    """One object of a listing."""

    name: str
    size_bytes: int
    modified: float
    """Seconds since the epoch, by the store's clock."""


class Store(Protocol):
    """Named byte strings in one flat space. Every read sees all writes that were completed before it.

    Every method raises StoreError, in one sentence, for anything that keeps the store from doing its work.
    """

    url: str
    """The URL passed to `open_store`, normalised."""

    def get(self, name: str) -> bytes:
        """Return the whole object. Raises MissingObjectError if there is none."""

    def get_range(self, name: str, start: int, length: int) -> bytes:
        """Return up to `length` bytes from `start`. Raises MissingObjectError if there is no such object."""

    def size(self, name: str) -> int:
        """Return the object's size in bytes. Raises MissingObjectError if there is none."""

    def exists(self, name: str) -> bool:
        """Return whether the object is there."""

    def put(self, name: str, data: bytes) -> None:
        """Create or replace a small object, whole or not at all.

        Only for short-lived probes and for readers' markers, which put the same bytes again to renew their time.
        Everything that a snapshot names is created by `put_if_absent` and `put_file_if_absent`.
        """

    def put_if_absent(self, name: str, data: bytes) -> bool:
        """Create the object only if there is none, in one step; exactly one of any number of writers gets True."""

    def put_file_if_absent(self, name: str, path: Path) -> bool:
        """Create the object from a local file of any size, in bounded memory, only if there is none.

        The object appears whole or not at all. Return True if this call created it. Callers name the object by the
        digest of its bytes: some S3 servers let two writers of one large object both succeed, and then the second
        replaces the first one's bytes with the same bytes.
        """

    def fetch(self, name: str, path: Path) -> None:
        """Copy the object to a local file, in bounded memory; the file appears whole or not at all."""

    def local_path(self, name: str) -> Path | None:
        """Return the path of the object as a local file that may be opened for reading, or None in a remote store."""

    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        """Yield all objects whose names start with `prefix`, sorted by name."""

    def delete(self, name: str) -> None:
        """Remove the object; it is no error if there is none."""

    def leftovers(self, before: float, *, delete: bool = False) -> tuple[ObjectInfo, ...]:
        """Return unfinished files of writers that died before `before` (by the store's clock); no listing shows them.

        With `delete` they are removed.
        """

    def needless_rights(self) -> tuple[str, ...]:
        """Return what the credentials allow and no store needs, in words, as far as reading alone can tell."""


def probe_name() -> str:
    """Return the name of a new short-lived object."""
    return f"{PROBES}{uuid.uuid4().hex}"


def beside(path: Path) -> Path:
    """Return a new name for an unfinished file in the folder of `path`."""
    return path.with_name(f"{TEMPORARY_PREFIX}{uuid.uuid4().hex}")


def remove_unfinished(temporary: Path) -> None:
    """Remove a file if it exists; an error here is ignored, since the one being raised says more."""
    with contextlib.suppress(OSError):
        temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def whole_copy(url: str, name: str, path: Path) -> Iterator[Path]:
    """Yield a file to write a copy of an object to, which then gets the name `path`; after an error, there is no file.

    An OSError within the block becomes a StoreError that names the object and its store's `url`.
    """
    temporary = beside(path)
    try:
        yield temporary
        os.replace(temporary, path)
    except OSError as error:
        advice = remedy_of(error, room=f"free disk space, or {OTHER_TEMPORARY}, and {OTHER_CACHE}")
        raise StoreError(
            f"object {name} of store {url} cannot be copied to {path} ({reason_of(error)}){advice}"
        ) from error
    finally:
        remove_unfinished(temporary)


def check_name(name: str) -> str:
    """Return `name`. Raises StoreError unless it is a plain relative object name."""
    parts = name.split("/")
    if any(part in ("", ".", "..") or part.startswith(TEMPORARY_PREFIX) for part in parts) or "\\" in name:
        raise StoreError(f"object name {name!r} is not a relative path of plain parts; use a name such as runs/7.json")
    if not name.isprintable():  # control characters do not survive every listing, surrogates have no UTF-8
        raise StoreError(f"object name {name!r} holds unprintable characters; use printable ones")
    return name


def check_prefix(prefix: str) -> str:
    """Return `prefix`. Raises StoreError unless names may start with it."""
    check_name(f"{prefix}x")
    return prefix


def check_range(start: int, length: int) -> None:
    """Raise StoreError if a range's start or length is negative."""
    if start < 0 or length < 0:
        raise StoreError(f"a range of {length} bytes from {start} cannot be read; neither may be negative")
