"""Name the file that shadows a package and caused an error, because its folder is in PYTHONPATH."""

import os
import sys
import sysconfig
import traceback
from collections.abc import Iterator
from importlib.machinery import PathFinder


def stand_in(error: BaseException) -> str | None:
    """Return the file that an error comes from or that is loaded, if it shadows a library's module of the same name.

    An example is a script `tokenizers.py` in a folder of PYTHONPATH. None if there is no such file.
    """
    named = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    # Python's own folders in PYTHONPATH shadow nothing
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
    """Yield files that may be at fault: where the error comes from, what could not be imported, and what was."""
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
