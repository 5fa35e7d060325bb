"""Whether a process has ended: real processes, real ends, and a /proc that hides them."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import asdict, replace

import pytest

from dpr.store.process import ProcessName, process_start
from tests.store.unprivileged import hiding_processes, run_unprivileged


def start_process() -> "subprocess.Popen[str]":
    """Start a process that ends when its input does."""
    process = subprocess.Popen(
        (sys.executable, "-c", "print(flush=True); input()"), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout
    process.stdout.readline()
    return process


def name_of(process: "subprocess.Popen[str]") -> ProcessName:
    return replace(ProcessName.own(), pid=process.pid, process_start=process_start(process.pid))


@pytest.fixture
def living() -> Iterator[ProcessName]:
    process = start_process()
    yield name_of(process)
    process.communicate("\n")


@pytest.fixture
def ended() -> ProcessName:
    process = start_process()
    name = name_of(process)
    process.communicate("\n")
    return name


def test_this_process_lives() -> None:
    own = ProcessName.own()
    assert own.pid == os.getpid()
    assert own.is_here()
    assert not own.has_ended()


def test_living_and_ended(living: ProcessName, ended: ProcessName) -> None:
    assert not living.has_ended()
    assert ended.has_ended()


def test_a_process_whose_parent_has_not_waited_has_ended() -> None:
    process = start_process()
    name = name_of(process)
    process.kill()
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    os.kill(process.pid, 0)  # its id is still taken
    assert name.has_ended()
    process.communicate()


def test_another_process_with_its_id_is_another_process(living: ProcessName) -> None:
    assert replace(living, process_start=str(int(living.process_start or 0) - 1)).has_ended()


@pytest.mark.parametrize("change", [{"host": "elsewhere"}, {"machine": "another boot"}, {"machine": None}])
def test_nothing_is_certain_of_other_machines(ended: ProcessName, change: dict[str, str | None]) -> None:
    name = replace(ended, **change)  # type: ignore[arg-type]
    assert not name.is_here()
    assert not name.has_ended()


def test_an_id_that_no_process_can_have(ended: ProcessName) -> None:
    assert replace(ended, pid=10**20).has_ended()


def test_without_a_start_time_only_the_end_is_certain(living: ProcessName, ended: ProcessName) -> None:
    assert not replace(living, process_start=None).has_ended()
    assert replace(ended, process_start=None).has_ended()


LOOK = """
from dpr.store.process import ProcessName
names = [ProcessName(**name) for name in json.loads(sys.argv[1])]
shown = [os.path.exists(f"/proc/{name.pid}/stat") and os.access(f"/proc/{name.pid}/stat", os.R_OK) for name in names]
print(json.dumps([shown, [name.has_ended() for name in names]]))
"""


@pytest.mark.slow
@pytest.mark.parametrize("hidepid", [1, 2])
def test_a_hidden_process_of_another_user_is_not_taken_for_dead(
    living: ProcessName, ended: ProcessName, hidepid: int
) -> None:
    names = json.dumps([asdict(living), asdict(ended)])
    answer = run_unprivileged(LOOK, names, before=hiding_processes(hidepid))
    shown, has_ended = json.loads(answer)
    assert shown == [False, False]  # to nobody they look alike in /proc
    assert has_ended == [False, True]
