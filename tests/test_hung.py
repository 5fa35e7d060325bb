"""A test that hangs ends all tests with its name, also where no error can be raised in it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow
HUNG = {
    "stopped": "import os, signal\ndef test_it():\n    os.kill(os.getpid(), signal.SIGSTOP)\n",
    "cleaning up": (
        "import threading\n"
        "def test_it():\n"
        "    try:\n        threading.Event().wait()\n"
        "    finally:\n        threading.Event().wait()\n"
    ),
}


@pytest.mark.parametrize("how", HUNG)
def test_all_tests_end_and_the_hung_one_is_named(how: str, tmp_path: Path) -> None:
    (tmp_path / "pytest.ini").write_text("[pytest]\ntimeout = 1\n")
    (tmp_path / "test_hangs.py").write_text(HUNG[how])
    command = [sys.executable, "-m", "pytest", "-p", "tests.hung", "-p", "no:cacheprovider", "-n", "1", "--rootdir"]
    surroundings = os.environ | {"DPR_TEST_HUNG_SECONDS": "5"}
    run = subprocess.run(
        [*command, tmp_path, tmp_path], capture_output=True, text=True, timeout=120, check=False, env=surroundings
    )
    assert run.returncode == 1
    assert "test_hangs.py::test_it has hung for 5 s" in run.stderr
