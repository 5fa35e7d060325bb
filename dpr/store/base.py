"""What every store promises. Names are relative POSIX paths; objects are immutable once created."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from dpr.errors import StoreError


@dataclass(frozen=True)
class ObjectInfo:
    """One object of a listing."""

    name: str
    size_bytes: int
    modified: float
    """Seconds since the epoch, by the store's clock."""


class Store(Protocol):
    """A flat space of named byte strings; reads see a completed write at once (strong consistency)."""

    url: str
    """What `open_store` was given, normalised."""

    def get(self, name: str) -> bytes:
        """The whole object; MissingObjectError if there is none."""

    def get_range(self, name: str, start: int, length: int) -> bytes:
        """Up to `length` bytes from `start`; MissingObjectError if there is no such object."""

    def size(self, name: str) -> int:
        """Its size in bytes; MissingObjectError if there is none."""

    def exists(self, name: str) -> bool:
        """Whether the object is there."""

    def put(self, name: str, data: bytes) -> None:
        """Create the object whole or not at all. Replaying a put of a content-named object is harmless."""

    def put_file(self, name: str, path: Path) -> None:
        """`put` of a local file of any size, in bounded memory."""

    def put_if_absent(self, name: str, data: bytes) -> bool:
        """Create the object only if there is none, atomically: of any number of writers exactly one gets True."""

    def fetch(self, name: str, path: Path) -> None:
        """Copy the object to a local file, in bounded memory; the file appears whole or not at all."""

    def local_path(self, name: str) -> Path | None:
        """Where the object lies as a local file that may be opened for reading, or None for a remote store."""

    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        """All objects whose name starts with `prefix`, sorted by name."""

    def delete(self, name: str) -> None:
        """Remove the object; no error if there is none."""

    def leftovers(self, before: float, *, delete: bool = False) -> tuple[ObjectInfo, ...]:
        """What writers that died before `before` (by the store's clock) left unfinished and no listing shows.

        With `delete` it is removed.
        """


def check_name(name: str) -> str:
    """Return `name` if it is a plain relative object name, else raise StoreError."""
    parts = name.split("/")
    if any(part in ("", ".", "..") or part.startswith(".tmp-") for part in parts) or "\\" in name:
        raise StoreError(f"object name {name!r} is not a relative path of plain parts; use a name such as runs/7.json")
    if not name.isprintable():  # control characters do not survive every listing, surrogates have no UTF-8
        raise StoreError(f"object name {name!r} holds unprintable characters; use printable ones")
    return name


def check_prefix(prefix: str) -> str:
    """Return `prefix` if names may start with it, else raise StoreError."""
    check_name(f"{prefix}x")
    return prefix


def check_range(start: int, length: int) -> None:
    """Raise StoreError unless a range of `length` bytes from `start` can be."""
    if start < 0 or length < 0:
        raise StoreError(f"a range of {length} bytes from {start} cannot be read; neither may be negative")
