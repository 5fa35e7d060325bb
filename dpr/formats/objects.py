"""Stored objects whose names carry the digest of their bytes: written once, verified when they are read."""

import contextlib
import hashlib
import io
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from dpr.errors import IntegrityError, MissingObjectError
from dpr.formats import layout
from dpr.formats.records import ObjectRef
from dpr.store import Store
from dpr.store.cache import local_cache
from dpr.store.ranged import RangedFile

_STREAM_BYTES = 8 << 20
_TAIL_BYTES = 1 << 16
"""Read when an object is opened in parts: as much as pyarrow reads first, which holds most footers."""


def file_sha256(path: Path) -> str:
    """Return the hex SHA-256 of a file, read in blocks."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def put_object(store: Store, stem: str, path: Path, sha256: str | None = None) -> ObjectRef:
    """Store a local file as `STEM-DIGEST.SUFFIX`, unless it is there already, and return its reference.

    The suffix is the file's own. The same bytes have the same name, so storing them again changes nothing. `sha256` is
    the file's digest, if the caller has computed it.
    """
    sha256 = sha256 or file_sha256(path)
    name = f"{stem}-{sha256[: layout.SHORT_DIGEST]}{path.suffix}"
    store.put_file_if_absent(name, path)
    return ObjectRef(name=name, size_bytes=path.stat().st_size, sha256=sha256)


def fetch_object(store: Store, ref: ObjectRef) -> Path:
    """Return a local file with the content of `ref`, verified: the stored file itself, or a copy in the cache.

    A file that was verified on this machine before, and has not changed since, is not hashed again. Raises
    IntegrityError if the bytes are not those recorded, MissingObjectError if the object is gone.
    """
    cache = local_cache()
    path = store.local_path(ref.name)
    if path is not None:
        _check(ref, store.url, *_identify(path, ref, store.url))
        return path
    key, fetched = _cache_key(ref), False

    def make(temporary: Path) -> None:
        nonlocal fetched
        store.fetch(ref.name, temporary)
        # verified before it enters the cache: others read parts of a cached copy without hashing it
        _check(ref, store.url, temporary.stat().st_size, file_sha256(temporary))
        fetched = True

    path = cache.fetch(key, make)
    if not fetched and (path.stat().st_size, cache.digest(path)) != (ref.size_bytes, ref.sha256):
        cache.remove(key)  # the cached copy is damaged: fetch it again
        path = cache.fetch(key, make)
    return path


def _cache_key(ref: ObjectRef) -> str:
    return f"objects/{ref.sha256}{Path(ref.name).suffix}"


def bytes_to_fetch(store: Store, ref: ObjectRef) -> int:
    """Return the bytes that `fetch_object` would write into the cache: 0 for a cached or a local object."""
    is_here = store.local_path(ref.name) is not None or local_cache().find(_cache_key(ref)) is not None
    return 0 if is_here else ref.size_bytes


def fetch_into(store: Store, ref: ObjectRef, folder: Path) -> Path:
    """Return a local file with the content of `ref`, verified: the stored file itself, or a copy in `folder`.

    For objects that are needed once, and that together would fill the cache. Raises IntegrityError as `fetch_object`
    does.
    """
    if store.local_path(ref.name) is not None:
        return fetch_object(store, ref)
    path = folder / f"{ref.sha256}{Path(ref.name).suffix}"
    store.fetch(ref.name, path)
    _check(ref, store.url, path.stat().st_size, file_sha256(path))
    return path


def read_table(file: Path, columns: Sequence[str] | None = None) -> pa.Table:
    """Read a small Parquet file in this thread alone; all its columns, unless some are named."""
    return pq.ParquetFile(file).read(columns, use_threads=False)


def read_object(store: Store, ref: ObjectRef) -> bytes:
    """Return the bytes of a small object. Raises IntegrityError if they are not those recorded."""
    data = store.get(ref.name)
    _check(ref, store.url, len(data), hashlib.sha256(data).hexdigest())
    return data


def open_whole(store: Store, ref: ObjectRef) -> Path:
    """Open an object that is read almost whole, or repeatedly: the stored file itself, or a verified copy in the cache.

    Raises MissingObjectError and IntegrityError as `open_parts` does.
    """
    path = store.local_path(ref.name)
    if path is None:
        return fetch_object(store, ref)
    _check_size(store, ref)
    return path


def open_parts(store: Store, ref: ObjectRef) -> Path | io.BufferedReader:
    """Open an object for pyarrow to read columns and row groups of it, whose page checksums pyarrow verifies.

    It is the stored file itself, or the copy that the cache holds of it, or a file that fetches what is read. Raises
    MissingObjectError if there is no such object, IntegrityError if its size is not the one recorded.
    """
    path = store.local_path(ref.name)
    if path is not None:
        _check_size(store, ref)
        return path
    kept = local_cache().find(_cache_key(ref))
    if kept is not None and kept.stat().st_size == ref.size_bytes:
        return kept
    # One byte more than the expected size is requested, so one request reads the footer and proves the size.
    start = max(0, ref.size_bytes - _TAIL_BYTES)
    tail = store.get_range(ref.name, start, ref.size_bytes - start + 1)
    if len(tail) != ref.size_bytes - start:
        _check(ref, store.url, start + len(tail), "")
    return RangedFile(store, ref.name, ref.size_bytes, tail).buffered()


def _check_size(store: Store, ref: ObjectRef) -> None:
    size_bytes = store.size(ref.name)
    if size_bytes != ref.size_bytes:
        _check(ref, store.url, size_bytes, "")


@contextlib.contextmanager
def damage_explained(file: Path | BinaryIO) -> Iterator[None]:
    """Turn pyarrow's errors about a damaged file, raised within the block, into IntegrityError."""
    try:
        yield
    except (OSError, pa.ArrowException) as error:
        name = file if isinstance(file, Path) else getattr(file, "name", "an object")
        raise IntegrityError(
            f"{name} is damaged ({' '.join(str(error).split())}); roll back to a sound snapshot or run the recipe again"
        ) from error


def verify_bytes(store: Store, ref: ObjectRef) -> None:
    """Read the whole object again, even if its digest is remembered. Raises IntegrityError as `fetch_object` does.

    A remote object is streamed, in bounded memory and without disk.
    """
    path = store.local_path(ref.name)
    if path is None:
        digest, size_bytes = hashlib.sha256(), store.size(ref.name)
        for start in range(0, size_bytes, _STREAM_BYTES):
            digest.update(store.get_range(ref.name, start, _STREAM_BYTES))
        _check(ref, store.url, size_bytes, digest.hexdigest())
        return
    size_bytes = _size(path, ref, store.url)
    _check(ref, store.url, size_bytes, file_sha256(path) if size_bytes == ref.size_bytes else "")


def _identify(path: Path, ref: ObjectRef, url: str) -> tuple[int, str]:
    """Return size and digest of a local file; the digest is empty if the size already differs."""
    size_bytes = _size(path, ref, url)
    return size_bytes, local_cache().digest(path) if size_bytes == ref.size_bytes else ""


def _size(path: Path, ref: ObjectRef, url: str) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError as error:
        raise MissingObjectError(f"object {ref.name} is not in store {url}, though a record names it") from error


def _check(ref: ObjectRef, url: str, size_bytes: int, sha256: str) -> None:
    if size_bytes != ref.size_bytes:
        raise IntegrityError(f"object {ref.name} in {url} has {size_bytes} bytes, its record says {ref.size_bytes}")
    if sha256 != ref.sha256:
        raise IntegrityError(f"object {ref.name} in {url} has sha256 {sha256}, its record says {ref.sha256}")
