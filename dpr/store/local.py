"""A store in a local folder. Atomic by writing beside and renaming (put) or hard-linking (put_if_absent)."""

import contextlib
import os
import shutil
import stat
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

from dpr.errors import MissingObjectError, StoreError
from dpr.store.base import ObjectInfo, check_name, check_prefix, check_range

_TEMPORARY = ".tmp-"
"""How the names of unfinished files begin; `check_name` refuses such names."""


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
        check_range(start, length)
        try:
            with self._path(name).open("rb") as file:
                available_bytes = max(0, os.fstat(file.fileno()).st_size - start)
                file.seek(start)
                return file.read(min(length, available_bytes))  # read() makes room for all it is asked for
        except OSError as error:
            raise self._said(name, error) from error

    def size(self, name: str) -> int:
        try:
            status = self._path(name).stat()
        except OSError as error:
            raise self._said(name, error) from error
        if not stat.S_ISREG(status.st_mode):  # a folder, above objects
            raise self._missing(name)
        return status.st_size

    def exists(self, name: str) -> bool:
        try:
            self.size(name)
        except MissingObjectError:
            return False
        return True

    def put(self, name: str, data: bytes) -> None:
        self._create(name, lambda temporary: _write_durably(temporary, data), os.replace)

    def put_file(self, name: str, path: Path) -> None:
        def write(temporary: Path) -> None:
            shutil.copyfile(path, temporary)
            _sync(temporary)

        if not path.is_file():
            raise StoreError(f"file {path} is not there to be stored as {name} in store {self.url}")
        self._create(name, write, os.replace)

    def put_if_absent(self, name: str, data: bytes) -> bool:
        created = True

        def link(temporary: Path, path: Path) -> None:
            nonlocal created
            try:
                os.link(temporary, path)  # fails if the target exists, also over NFS; rename would replace it
            except FileExistsError:
                # over NFS the answer to a link that was made may get lost, and its repetition fails
                created = temporary.stat().st_nlink > 1
                if path.is_dir():
                    raise

        self._create(name, lambda temporary: _write_durably(temporary, data), link)
        return created

    def fetch(self, name: str, path: Path) -> None:
        self.size(name)
        temporary = path.with_name(f"{_TEMPORARY}{uuid.uuid4().hex}")
        try:
            shutil.copyfile(self._path(name), temporary)
            os.replace(temporary, path)
        except OSError as error:
            raise StoreError(f"object {name} cannot be copied to {path}: {error.strerror or error}") from error
        finally:
            temporary.unlink(missing_ok=True)

    def local_path(self, name: str) -> Path | None:
        return self._path(name)

    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        files = self._files(check_prefix(prefix).rpartition("/")[0])
        found = (info for info in files if info.name.startswith(prefix) and not _is_temporary(info.name))
        yield from sorted(found, key=lambda info: info.name)

    def leftovers(self, before: float, *, delete: bool = False) -> tuple[ObjectInfo, ...]:
        found = tuple(i for i in self._files("") if _is_temporary(i.name) and i.modified < before)
        for info in found if delete else ():
            (self._folder / info.name).unlink(missing_ok=True)
        return found

    def delete(self, name: str) -> None:
        try:
            self._path(name).unlink(missing_ok=True)
        except (NotADirectoryError, IsADirectoryError):
            return  # below or above an object: nothing by that name
        except OSError as error:
            raise self._said(name, error) from error

    def _files(self, below: str) -> Iterator[ObjectInfo]:
        def refuse(error: OSError) -> None:
            if not isinstance(error, (FileNotFoundError, NotADirectoryError)):  # no such folder: no such objects
                raise StoreError(f"store {self.url} cannot be listed: {error.filename}: {error.strerror}") from error

        for folder, _, files in os.walk(self._folder / below, onerror=refuse):
            for file in files:
                path = Path(folder, file)
                try:
                    status = path.stat()
                except FileNotFoundError:
                    continue  # deleted while we were listing
                yield ObjectInfo(path.relative_to(self._folder).as_posix(), status.st_size, status.st_mtime)

    def _path(self, name: str) -> Path:
        return self._folder / check_name(name)

    def _create(self, name: str, write: Callable[[Path], None], commit: Callable[[Path, Path], None]) -> None:
        path = self._path(name)
        temporary = path.with_name(f"{_TEMPORARY}{uuid.uuid4().hex}")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            write(temporary)
            commit(temporary, path)
            _sync(path.parent)
        except (FileExistsError, NotADirectoryError, IsADirectoryError) as error:
            raise StoreError(
                f"object {name} cannot be created in store {self.url}: a folder has no room for both a file and a "
                f"folder of one name, and another object claims {name} or a part of it; choose another name"
            ) from error
        except OSError as error:
            raise StoreError(f"object {name} cannot be created in store {self.url}: {error.strerror}") from error
        finally:
            with contextlib.suppress(NotADirectoryError):
                temporary.unlink(missing_ok=True)

    def _said(self, name: str, error: OSError) -> StoreError:
        if isinstance(error, (FileNotFoundError, NotADirectoryError, IsADirectoryError)):
            return self._missing(name)
        return StoreError(f"store {self.url}, object {name}: {error.strerror or error}")

    def _missing(self, name: str) -> MissingObjectError:
        return MissingObjectError(f"object {name} is not in store {self.url}")


def _is_temporary(name: str) -> bool:
    return name.rpartition("/")[2].startswith(_TEMPORARY)


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
