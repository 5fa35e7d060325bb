"""Run dpr on Ray. Here is what must hold before other modules import Ray: where from, and its settings."""

import os
import sys


def _leave_out_current_folder() -> None:
    """Import nothing from the current folder where Python has put it by itself, unless this package is there.

    A user may have a file `tokenizers.py` or `json.py` where a command is started. `python -m` puts the current folder
    first, and an empty entry of PYTHONPATH (`PYTHONPATH=$PYTHONPATH:/more` where there was none) means it, too. What
    Ray hands on to its workers is settled in `connect.py`. Nothing is imported before that such a file could replace.
    """
    path = os.environ.get("PYTHONPATH")
    entries = path.split(os.pathsep) if path else []
    named = [entry for entry in entries if entry]
    if path:
        os.environ["PYTHONPATH"] = os.pathsep.join(named)
    if sys.argv[:1] != ["-m"] and len(named) == len(entries):  # argv: "-m" while the package of the module is imported
        return
    try:
        here = os.getcwd()
    except FileNotFoundError:
        return  # nothing can be imported from a folder that was deleted
    has_this_package = here == os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    if not has_this_package and here not in map(os.path.abspath, named):
        sys.path[:] = [entry for entry in sys.path if entry != here]


_leave_out_current_folder()

# no usage reports without consent
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
# how often a task is repeated that Ray ended because memory ran short; Ray's own default is for ever
os.environ.setdefault("RAY_task_oom_retries", "5")
# workers of a Ray that we start run at this process's own priority; Ray would lower it by 15, and a run beside other
# work would hardly get a CPU
os.environ.setdefault("RAY_worker_niceness", "0")
# a thread of Ray Data that outlives the connection must not start another Ray
os.environ.setdefault("RAY_ENABLE_AUTO_CONNECT", "0")
