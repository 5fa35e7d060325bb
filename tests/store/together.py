"""Several real processes that begin their work at the same moment."""

import os
import shutil
import subprocess
import sys

from tests.store.unprivileged import ROOT

WAIT = "import os, sys\nprint(os.getpid(), flush=True)\nsys.stdin.readline()\n"


def run_together(imports: str, code: str, number: int, *arguments: object) -> list[str]:
    """Run the code in `number` processes, all of which have imported what it needs; return what each prints.

    Where the tests run as root, each process has a process numbering of its own, as containers have: all have one id.
    """
    apart = ("unshare", "--pid", "--fork") if os.geteuid() == 0 and shutil.which("unshare") else ()
    command = (*apart, sys.executable, "-c", imports + WAIT + code, *map(str, arguments))
    processes = [
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT)
        for _ in range(number)
    ]
    ids = set()
    for process in processes:
        assert process.stdout
        ids.add(process.stdout.readline())
    assert len(ids) == (1 if apart else number)
    for process in processes:
        assert process.stdin
        process.stdin.write("\n")
        process.stdin.flush()
    outputs = [process.communicate()[0].strip() for process in processes]
    assert [process.returncode for process in processes] == [0] * number
    return outputs
