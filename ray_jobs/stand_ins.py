"""Name the file behind an error that was imported in place of a package, since its folder is in PYTHONPATH."""

import os
import sys
import sysconfig
import traceback
from collections.abc import Iterator
from importlib.machinery import PathFinder


def stand_in(error: BaseException) -> str | None:
    """Return the file that an error comes from or that is loaded, if it stands before a library's module of its name.

    A script `tokenizers.py` in a folder of PYTHONPATH is such a file; None if there is none.
    """
    named = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    # whoever names Python's own folders there replaces nothing
    own = {sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")}
    folders = {os.path.abspath(entry) for entry in named if entry} - own
    others = [entry for entry in sys.path if os.path.abspath(entry) not in folders]
    for file in _files(error):
        for folder in folders:
            if file.startswith(folder + os.sep):
                name = os.path.relpath(file, folder).split(os.sep)[0].removesuffix(".py")
                if name.isidentifier() and (name in sys.stdlib_module_names or PathFinder.find_spec(name, others)):
                    return file
    return None


def _files(error: BaseException) -> Iterator[str]:
    """Yield the files that may be at fault: where the error comes from, what could not be imported, what was."""
    cause: BaseException | None = error
    while cause is not None:
        for frame in reversed(traceback.extract_tb(cause.__traceback__)):
            yield os.path.abspath(frame.filename)
        if isinstance(cause, ImportError) and cause.path:
            yield os.path.abspath(cause.path)
        cause = cause.__cause__ or cause.__context__
    for name, module in list(sys.modules.items()):
        if "." not in name and (file := getattr(module, "__file__", None)):
            yield os.path.abspath(file)
