"""Folders for temporary files, and the error for a disk that fills up while files are written."""

import contextlib
import errno
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

from dpr.errors import RoomError

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""The disk is full, the user's quota is used up, or the file is larger than the system allows."""
OTHER_TEMPORARY = "set TMPDIR to a folder of a larger disk"
OTHER_CACHE = "set DPR_CACHE to a folder of a larger disk"


@contextlib.contextmanager
def temporary_folder() -> Iterator[Path]:
    """Make a folder for temporary files, below $TMPDIR or else /tmp, and remove it at the end.

    Raises RoomError if it cannot be made, or if its disk fills up within the block.
    """
    root = temporary_root()
    with full_disk_explained(root, OTHER_TEMPORARY), tempfile.TemporaryDirectory(dir=root) as folder:
        yield Path(folder)


def temporary_root() -> Path:
    """Return the folder that temporary files lie in. Raises RoomError if no file can be written in any of them.

    Python takes the first folder in which it can write: $TMPDIR, $TEMP, $TMP, /tmp, /var/tmp, the working folder.
    """
    try:
        return Path(tempfile.gettempdir())
    except FileNotFoundError as error:
        raise RoomError(
            f"there is no folder for temporary files ({error.strerror}); free disk space, or {OTHER_TEMPORARY}"
        ) from error


@contextlib.contextmanager
def full_disk_explained(folder: Path, otherwise: str) -> Iterator[None]:
    """Turn the error of a full disk, raised within the block by a writer in `folder`, into a RoomError.

    `otherwise` is the alternative to freeing disk space. Other errors pass through.
    """
    try:
        yield
    except OSError as error:
        if not is_full_disk(error):
            raise
        # pyarrow's own text only repeats this
        raise RoomError(
            f"files in {folder} cannot be written ({os.strerror(error.errno or 0)}); free disk space, or {otherwise}, "
            "and start again"
        ) from error


def is_full_disk(error: OSError) -> bool:
    """Return whether an error means that there is no room to write."""
    return error.errno in _FULL
