"""Run dpr on Ray. This file sets the import path and Ray's settings before any other module imports Ray."""

import os
import sys


def _leave_out_current_folder() -> None:
    """Take the current folder off the import path where Python put it there unasked, unless this package lies in it.

    A user may have a file `tokenizers.py` or `json.py` where a command is started. `python -m` puts the current folder
    first, and an empty entry of PYTHONPATH (`PYTHONPATH=$PYTHONPATH:/more` where there was none) means it, too.
    `connect.py` decides what Ray passes on to its workers. Nothing that such a file could replace is imported before.
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
# how often Ray repeats a task that it ended because memory ran short; by default it repeats without limit
os.environ.setdefault("RAY_task_oom_retries", "5")
# workers of a Ray that we start keep this process's priority: lowered by 15, Ray's default, they would hardly get a #
# CPU on a machine that does other work
os.environ.setdefault("RAY_worker_niceness", "0")
# with many CPUs, the workers that Ray starts at once, one for each, would hold each other up: without them, a night of
# 46 s on 64 CPUs took 43, but one of 22 s on 32 CPUs took 23 or 24
if (os.cpu_count() or 1) > 32:
    os.environ.setdefault("RAY_prestart_worker_first_driver", "0")
# a thread of Ray Data that outlives the connection must not start another Ray
os.environ.setdefault("RAY_ENABLE_AUTO_CONNECT", "0")
# after a minute of silence a driver asks whether a machine that it waits for is there, and gives it up half a minute
# later; by Ray's own settings that takes up to seven minutes. Ray's servers hang up on those who ask more often
os.environ.setdefault("RAY_grpc_client_keepalive_time_ms", "60000")
os.environ.setdefault("RAY_grpc_client_keepalive_timeout_ms", "30000")
