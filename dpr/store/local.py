"""A store in a local folder. Atomic by writing beside and renaming (put) or hard-linking (put_if_absent)."""

import os
import shutil
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

from dpr.errors import MissingObjectError, StoreError
from dpr.store.base import ObjectInfo, check_name


class LocalStore:
    """Objects are files below `folder`, which is made on the first write."""

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self._folder = Path(folder).expanduser().absolute()
        self.url = str(self._folder)
        if self._folder.exists() and not self._folder.is_dir():
            raise StoreError(f"store {self.url} is a file; a store is a folder or s3://bucket/prefix")

    def get(self, name: str) -> bytes:
        try:
            return self._path(name).read_bytes()
        except OSError as error:
            raise self._said(name, error) from error

    def get_range(self, name: str, start: int, length: int) -> bytes:
        try:
            with self._path(name).open("rb") as file:
                file.seek(start)
                return file.read(length)
        except OSError as error:
            raise self._said(name, error) from error

    def size(self, name: str) -> int:
        try:
            return self._path(name).stat().st_size
        except OSError as error:
            raise self._said(name, error) from error

    def exists(self, name: str) -> bool:
        return self._path(name).is_file()

    def put(self, name: str, data: bytes) -> None:
        self._create(name, lambda temporary: _write_durably(temporary, data), os.replace)

    def put_file(self, name: str, path: Path) -> None:
        def write(temporary: Path) -> None:
            shutil.copyfile(path, temporary)
            _sync(temporary)

        self._create(name, write, os.replace)

    def put_if_absent(self, name: str, data: bytes) -> bool:
        try:
            # link(2) fails if the target exists, also over NFS; rename(2) would silently replace it
            self._create(name, lambda temporary: _write_durably(temporary, data), os.link)
        except FileExistsError:
            return False
        return True

    def fetch(self, name: str, path: Path) -> None:
        temporary = path.with_name(f".tmp-{uuid.uuid4().hex}")
        try:
            shutil.copyfile(self._path(name), temporary)
            os.replace(temporary, path)
        except OSError as error:
            raise self._said(name, error) from error
        finally:
            temporary.unlink(missing_ok=True)

    def local_path(self, name: str) -> Path | None:
        return self._path(name)

    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        found: list[ObjectInfo] = []
        start = self._folder / prefix.rpartition("/")[0]
        for folder, folders, files in os.walk(start):
            folders.sort()
            for file in files:
                path = Path(folder, file)
                name = path.relative_to(self._folder).as_posix()
                if name.startswith(prefix) and not file.startswith(".tmp-"):
                    try:
                        stat = path.stat()
                    except FileNotFoundError:
                        continue  # deleted while we were listing
                    found.append(ObjectInfo(name, stat.st_size, stat.st_mtime))
        yield from sorted(found, key=lambda info: info.name)

    def delete(self, name: str) -> None:
        try:
            self._path(name).unlink(missing_ok=True)
        except OSError as error:
            raise self._said(name, error) from error

    def _path(self, name: str) -> Path:
        return self._folder / check_name(name)

    def _create(self, name: str, write: Callable[[Path], None], commit: Callable[[Path, Path], None]) -> None:
        path = self._path(name)
        temporary = path.with_name(f".tmp-{uuid.uuid4().hex}")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            write(temporary)
            commit(temporary, path)
            _sync(path.parent)
        except FileExistsError:
            raise
        except OSError as error:
            raise self._said(name, error) from error
        finally:
            temporary.unlink(missing_ok=True)

    def _said(self, name: str, error: OSError) -> StoreError:
        if isinstance(error, (FileNotFoundError, NotADirectoryError, IsADirectoryError)):
            return MissingObjectError(f"object {name} is not in store {self.url}")
        return StoreError(f"store {self.url}, object {name}: {error.strerror or error}")


def _write_durably(path: Path, data: bytes) -> None:
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _sync(path: Path) -> None:
    """Flush a file's or folder's metadata and data to the device, so that a record never outlives what it records."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
