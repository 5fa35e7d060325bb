"""Records: the small JSON documents that say a unit of work is done, and what it made.

A record is written after the objects it names, so an object without a record is unfinished work (law 2).
"""

import contextlib
import hashlib
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from dpr.errors import IntegrityError, MissingObjectError
from dpr.fingerprint import canonical_json
from dpr.store import Store
from dpr.store.reader import RangedFile

_BLOCK_BYTES = 1 << 20
_STREAM_BYTES = 8 << 20


class Document(BaseModel):
    """Base of everything that is stored as JSON: unknown fields are refused, values are frozen."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    def to_bytes(self) -> bytes:
        """Canonical JSON: equal documents are equal bytes."""
        return canonical_json(self.model_dump(mode="json"))


class ObjectRef(Document):
    """A stored object and how to know it again."""

    name: str
    size_bytes: int
    sha256: str


class Record(Document):
    """What one finished unit made."""

    unit: str
    rows: int
    objects: list[ObjectRef]
    facts: dict[str, Any] = {}


def file_sha256(path: Path) -> str:
    """Hex SHA-256 of a file, read in blocks."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_BLOCK_BYTES):
            digest.update(block)
    return digest.hexdigest()


def put_object(store: Store, name: str, path: Path) -> ObjectRef:
    """Upload a local file under `name` and return its reference."""
    ref = ObjectRef(name=name, size_bytes=path.stat().st_size, sha256=file_sha256(path))
    store.put_file(name, path)
    return ref


def fetch_object(store: Store, ref: ObjectRef, folder: Path) -> Path:
    """A local file with the verified content of `ref`: the stored file itself, or a copy in `folder`.

    A sound copy already there is used. Raises IntegrityError if the bytes are not those recorded.
    """
    path = store.local_path(ref.name)
    if path is None:
        path = folder / f"{ref.sha256[:16]}-{Path(ref.name).name}"
        if path.exists():
            with contextlib.suppress(IntegrityError):
                verify_file(path, ref, str(folder))
                return path
        # not there, or damaged where it lies: the store decides
        folder.mkdir(parents=True, exist_ok=True)
        store.fetch(ref.name, path)
    verify_file(path, ref, store.url)
    return path


def open_verified(store: Store, ref: ObjectRef) -> Path | RangedFile:
    """The object `ref`, to be read in parts: the stored file itself, or one that fetches the ranges that are read.

    Its checksum is verified first, in bounded memory and without disk: a remote object is streamed once, and stays as
    it is, since stored objects are never changed. Raises IntegrityError if the bytes are not those recorded.
    """
    path = store.local_path(ref.name)
    if path is not None:
        verify_file(path, ref, store.url)
        return path
    digest, size_bytes = hashlib.sha256(), store.size(ref.name)
    for start in range(0, size_bytes, _STREAM_BYTES):
        digest.update(store.get_range(ref.name, start, _STREAM_BYTES))
    _check(ref, store.url, size_bytes, digest.hexdigest())
    return RangedFile(store, ref.name, size_bytes)


def verify_file(path: Path, ref: ObjectRef, where: str) -> None:
    """Raise IntegrityError unless the file's size and SHA-256 are those of `ref`."""
    try:
        size = path.stat().st_size
    except FileNotFoundError as error:
        raise MissingObjectError(f"object {ref.name} is not in store {where}, though a record names it") from error
    _check(ref, where, size, file_sha256(path) if size == ref.size_bytes else "")


def _check(ref: ObjectRef, where: str, size_bytes: int, sha256: str) -> None:
    if size_bytes != ref.size_bytes:
        raise IntegrityError(f"object {ref.name} in {where} has {size_bytes} bytes, its record says {ref.size_bytes}")
    if sha256 != ref.sha256:
        raise IntegrityError(f"object {ref.name} in {where} has sha256 {sha256}, its record says {ref.sha256}")


def read_record(store: Store, name: str) -> Record | None:
    """The record of a finished unit, or None while the unit is not done."""
    try:
        return Record.model_validate_json(store.get(name))
    except MissingObjectError:
        return None
    except ValidationError as error:
        raise IntegrityError(
            f"object {name} in {store.url} is not a record of this version; delete it, and its unit is done again"
        ) from error


def write_record(store: Store, name: str, record: Record) -> Record:
    """Declare a unit done. Call it after all its objects are in the store."""
    store.put(name, record.to_bytes())
    return record
