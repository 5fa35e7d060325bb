"""The end of a command's process: its exit code and its output, whatever threads of a library still do."""

import subprocess
import sys

import pytest

_LATE_THREAD = """
import io, sys, threading, time
import pyarrow as pa, pyarrow.parquet as pq

begun = threading.Event()

class Slow(io.BytesIO):
    def read(self, *size):
        if isinstance(threading.current_thread(), threading._DummyThread):  # one of Arrow's
            begun.set()
            time.sleep(0.3)
        return super().read(*size)

class Late:  # so that Python still ends when Arrow's thread comes back to it
    def __del__(self):
        time.sleep(1)

late = Late()

def work():
    file = io.BytesIO()
    pq.write_table(pa.table({"a": [1]}), file)
    threading.Thread(target=lambda: pq.read_table(Slow(file.getvalue())), daemon=True).start()
    assert begun.wait(30)
    print("the result")
"""
_ENDINGS = {
    "pass": 0,
    "raise StoreError('no store')": 5,
    "raise SystemExit(6)": 6,
    "raise SystemExit": 0,
    "raise SystemExit('a text')": 1,
    "raise ValueError": 1,
    "os.kill(os.getpid(), signal.SIGTERM); time.sleep(30)": 143,
}


def _ended(code: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=120)


@pytest.mark.skipif(sys.version_info >= (3, 14), reason="Python 3.14 lets such threads hang")
def test_a_thread_of_arrow_aborts_the_process_as_python_ends_it() -> None:
    """The fault that the next test is about: without it, that one could not fail."""
    assert _ended(f"{_LATE_THREAD}\nwork()").returncode == -6


def test_a_thread_of_arrow_that_still_reads_does_not_change_the_exit_code() -> None:
    ended = _ended(f"{_LATE_THREAD}\nfrom ray_jobs.leaving import run_and_exit\nrun_and_exit(work)")
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "the result\n", "")


@pytest.mark.parametrize("ending", _ENDINGS)
def test_each_ending_keeps_its_exit_code_its_output_and_the_exit_functions(ending: str) -> None:
    ended = _ended(
        "import atexit, os, signal, time\n"
        "from dpr.errors import StoreError\n"
        "from ray_jobs.leaving import run_and_exit\n"
        "def work():\n"
        "    atexit.register(print, 'exit function')\n"
        "    print('result', end=' ')\n"
        f"    {ending}\n"
        "run_and_exit(work)\n"
    )
    assert (ended.returncode, ended.stdout) == (_ENDINGS[ending], "result exit function\n")


def test_a_pipe_that_nobody_reads_still_ends_with_141() -> None:
    code = "from ray_jobs.leaving import run_and_exit\nrun_and_exit(lambda: print('x' * 10**6))"
    ended = subprocess.run(
        ["bash", "-c", '"$0" -c "$1" | true; echo ${PIPESTATUS[0]}', sys.executable, code],
        capture_output=True,
        text=True,
        check=True,
    )
    assert (ended.stdout, ended.stderr) == ("141\n", "")
