"""Idle processors are counted as Linux counts them, and never where that says nothing about this process."""

import os
import subprocess
import sys

import pytest

from dpr.idle_processors import IdleProcessors

pytestmark = [
    pytest.mark.without_ray,
    pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux counts what runs"),
]
ALL = os.cpu_count() or 1
ENDLESS = "print(flush=True)\nwhile True: pass"


def test_who_asks_is_not_idle() -> None:
    assert not IdleProcessors().are_there(ALL)


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < ALL, reason="this process may not use every processor")
def test_no_processor_is_idle_while_each_has_work() -> None:
    processors = IdleProcessors()
    assert processors.are_there(-1_000_000)  # the number is read
    busy = [subprocess.Popen([sys.executable, "-c", ENDLESS], stdout=subprocess.PIPE) for _ in range(ALL)]
    try:
        for each in busy:
            assert each.stdout is not None
            each.stdout.readline()
        assert not any(processors.are_there(1) for _ in range(100))
    finally:
        for each in busy:
            each.kill()
            each.communicate()


@pytest.mark.skipif(ALL < 2, reason="one processor")
def test_the_numbers_say_nothing_to_a_process_that_may_not_use_every_processor() -> None:
    script = (
        "import os\nfrom dpr.idle_processors import IdleProcessors\n"
        "os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})\n"
        "print(IdleProcessors().are_there(-1_000_000))"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=environment, check=True)
    assert done.stdout == "False\n"


def test_its_file_is_closed_with_it() -> None:
    processors = IdleProcessors()
    file = processors._file
    del processors
    if file is not None:
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(file)
