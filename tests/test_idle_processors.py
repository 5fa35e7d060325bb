"""Idle processors are counted as Linux counts them, and never where that says nothing about this process."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from dpr.idle_processors import IdleProcessors

pytestmark = [
    pytest.mark.without_ray,
    pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux counts what runs"),
]
ALL = os.cpu_count() or 1
knows = pytest.mark.skipif(IdleProcessors()._file is None, reason="this process may not use every processor")
ENDLESS = "print(flush=True)\nwhile True: pass"


def test_who_asks_is_not_idle() -> None:
    assert not IdleProcessors().are_there(ALL)


@knows
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


@knows
def test_its_file_is_closed_with_it() -> None:
    processors = IdleProcessors()
    file = processors._file
    assert file is not None
    del processors
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(file)


@pytest.mark.parametrize("quota", ["100000 100000\n", "50000 100000\n"])
def test_the_numbers_say_nothing_to_a_process_with_a_quota(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, quota: str
) -> None:
    file = tmp_path / "cpu.max"
    file.write_text(quota)
    monkeypatch.setattr("dpr.idle_processors._QUOTA", file)
    assert not IdleProcessors().are_there(-1_000_000)


def test_a_machine_that_hides_the_numbers_has_no_idle_processors(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dpr.idle_processors._LOADAVG", str(tmp_path / "hidden"))
    assert not IdleProcessors().are_there(-1_000_000)
