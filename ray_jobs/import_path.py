"""Keep the current folder out of the places that this process, and those that it starts, import modules from.

A user may have a file `tokenizers.py` or `json.py` where a command is started. `python -m` puts the current folder
first, and an empty entry of PYTHONPATH (`PYTHONPATH=$PYTHONPATH:/more` where there was none) means it, too. What Ray
hands on to its workers is settled in `connect.py`. This module imports nothing that such a file could replace.
"""

import os
import sys


def leave_out_current_folder() -> None:
    """Remove the current folder where Python has put it by itself, unless this package is there."""
    entries = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    named = [entry for entry in entries if entry]
    if named:
        os.environ["PYTHONPATH"] = os.pathsep.join(named)
    else:
        os.environ.pop("PYTHONPATH", None)
    if sys.argv[:1] != ["-m"] and len(named) == len(entries):  # argv: "-m" while the package of the module is imported
        return
    try:
        here = os.getcwd()
    except FileNotFoundError:
        return  # nothing can be imported from a folder that was deleted
    has_this_package = here == os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    if not has_this_package and here not in map(os.path.abspath, named):
        sys.path[:] = [entry for entry in sys.path if entry != here]
