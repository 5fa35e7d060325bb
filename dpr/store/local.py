"""A store in a local folder.

Objects are written under another name, then renamed (put) or hard-linked (put-if-absent).
"""

import os
import shutil
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

from dpr.errors import MissingObjectError, StoreError
from dpr.store.base import (
    TEMPORARY_PREFIX,
    ObjectInfo,
    beside,
    check_name,
    check_prefix,
    check_range,
    remove_unfinished,
    whole_copy,
)
from dpr.store.reasons import reason_of, remedy_of

_ABSENT = (FileNotFoundError, NotADirectoryError, IsADirectoryError)
"""Errors that mean that no object has the name: there is nothing, or the name lies below or above an object."""


class LocalStore:
    """A store whose objects are files below `folder`, which is made on the first write. See Store for the methods."""

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        try:
            self._folder = Path(folder).expanduser().absolute()
            is_folder = stat.S_ISDIR(self._folder.stat().st_mode)
        except FileNotFoundError:
            is_folder = True  # it is made on the first write
            _refuse_broken_links(self._folder)
        except NotADirectoryError:
            is_folder = False
        except (
            OSError,
            RuntimeError,
            ValueError,
        ) as error:  # no permission, no such home folder, a null character
            raise StoreError(
                f"store {os.fspath(folder)!r} cannot be opened ({reason_of(error)}){remedy_of(error)}"
            ) from error
        self.url = str(self._folder)
        if not is_folder:
            raise StoreError(f"store {self.url} is a file or lies below one; a store is a folder or s3://bucket/prefix")

    def get(self, name: str) -> bytes:
        try:
            return self._path(name).read_bytes()
        except OSError as error:
            raise self._failure(name, error) from error

    def get_range(self, name: str, start: int, length: int) -> bytes:
        check_range(start, length)
        try:
            with self._path(name).open("rb") as file:
                available_bytes = max(0, os.fstat(file.fileno()).st_size - start)
                file.seek(start)
                return file.read(min(length, available_bytes))  # read() allocates the length that it is given
        except OSError as error:
            raise self._failure(name, error) from error

    def size(self, name: str) -> int:
        try:
            status = self._path(name).stat()
        except OSError as error:
            raise self._failure(name, error) from error
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
        def rename(temporary: Path, path: Path) -> bool:
            os.replace(temporary, path)
            return True

        self._create(name, lambda temporary: _write_durably(temporary, data), rename)

    def put_if_absent(self, name: str, data: bytes) -> bool:
        return self._create(name, lambda temporary: _write_durably(temporary, data), _link)

    def put_file_if_absent(self, name: str, path: Path) -> bool:
        def copy(temporary: Path) -> None:
            shutil.copyfile(path, temporary)
            _sync(temporary)

        check_name(name)
        try:
            path.open("rb").close()
        except OSError as error:
            raise StoreError(
                f"file {path} cannot be read, so it was not stored as {name} in store {self.url} "
                f"({reason_of(error)}){remedy_of(error)}"
            ) from error
        return not self.exists(name) and self._create(name, copy, _link)

    def fetch(self, name: str, path: Path) -> None:
        self.size(name)
        with whole_copy(self.url, name, path) as temporary:
            shutil.copyfile(self._path(name), temporary)

    def local_path(self, name: str) -> Path | None:
        return self._path(name)

    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        files = self._files(check_prefix(prefix).rpartition("/")[0])
        found = (info for info in files if info.name.startswith(prefix) and not _is_temporary(info.name))
        yield from sorted(found, key=lambda info: info.name)

    def delete(self, name: str) -> None:
        try:
            self._path(name).unlink()
        except _ABSENT:
            return
        except OSError as error:
            if not self.exists(name):  # to unlink a folder above objects is "not permitted" on some systems
                return
            raise self._failure(name, error) from error

    def leftovers(self, before: float, *, delete: bool = False) -> tuple[ObjectInfo, ...]:
        found = tuple(i for i in self._files("") if _is_temporary(i.name) and i.modified < before)
        for info in found if delete else ():
            try:
                (self._folder / info.name).unlink(missing_ok=True)
            except OSError as error:
                raise self._failure(info.name, error) from error
        return found

    def needless_rights(self) -> tuple[str, ...]:
        return ()  # a folder has no credentials

    def _files(self, below: str) -> Iterator[ObjectInfo]:
        def refuse(error: OSError) -> None:
            if not isinstance(error, _ABSENT):  # no such folder: no such objects
                raise StoreError(
                    f"store {self.url} cannot be listed: {error.filename}: {reason_of(error)}{remedy_of(error)}"
                ) from error

        for folder, _, files in os.walk(self._folder / below, onerror=refuse):
            for file in files:
                path = Path(folder, file)
                try:
                    status = path.stat()
                except OSError as error:
                    refuse(error)
                    continue  # deleted during the listing
                yield ObjectInfo(path.relative_to(self._folder).as_posix(), status.st_size, status.st_mtime)

    def _path(self, name: str) -> Path:
        return self._folder / check_name(name)

    def _create(self, name: str, write: Callable[[Path], None], commit: Callable[[Path, Path], bool]) -> bool:
        """Write a file beside the object's and `commit` it; return the result of that: whether the object is new."""
        path = self._path(name)
        temporary = beside(path)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            write(temporary)
            created = commit(temporary, path)
            _sync(path.parent)
        except (FileExistsError, NotADirectoryError, IsADirectoryError) as error:
            raise StoreError(
                f"object {name} cannot be created in store {self.url}: a file and a folder cannot have the same "
                f"name, and another object is already named {name} or a part of it; choose another name"
            ) from error
        except OSError as error:
            raise StoreError(
                f"object {name} cannot be created in store {self.url}: {reason_of(error)}{remedy_of(error)}"
            ) from error
        finally:
            remove_unfinished(temporary)  # if that fails, `leftovers` finds it
        return created

    def _failure(self, name: str, error: OSError) -> StoreError:
        if isinstance(error, _ABSENT):
            return self._missing(name)
        return StoreError(f"store {self.url}, object {name}: {reason_of(error)}{remedy_of(error)}")

    def _missing(self, name: str) -> MissingObjectError:
        return MissingObjectError(f"object {name} is not in store {self.url}")


def _refuse_broken_links(folder: Path) -> None:
    """Raise StoreError if a folder that is not there is named by a link, or lies below one, whose target is missing."""
    for path in (folder, *folder.parents):
        if path.is_symlink() and not path.exists():
            raise StoreError(
                f"store {folder} cannot be opened: {path} is a link to {os.readlink(path)}, which is not there; mount "
                "or create that, or correct the link"
            )


def _link(temporary: Path, path: Path) -> bool:
    """Give the finished file its name, unless there is an object of that name; return whether this call did so."""
    try:
        os.link(temporary, path)  # fails if the target exists, also over NFS; a rename would replace it
    except FileExistsError:
        if path.is_dir():
            raise
        # over NFS the answer to a successful link may get lost, and the repeated request fails
        return temporary.stat().st_nlink > 1
    return True


def _is_temporary(name: str) -> bool:
    return name.rpartition("/")[2].startswith(TEMPORARY_PREFIX)


def _write_durably(path: Path, data: bytes) -> None:
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _sync(path: Path) -> None:
    """Flush a file or folder to the device, so that a record never outlives what it names."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
