"""A night on several nodes that is disturbed ends in the snapshot of an undisturbed one."""

import os
import signal

import pytest

from tests.ray_jobs.nodes.conftest import Night
from tests.ray_jobs.nodes.machines import Machines

pytestmark = [pytest.mark.slow]


def test_driver_and_node_are_killed_and_a_node_is_added(machines: Machines, night: Night) -> None:
    first = night.submit(machines)
    night.wait_for("segments/", 3, first)
    os.kill(first.driver(), signal.SIGKILL)
    assert first.end() == "FAILED"
    second = night.submit(machines)
    night.wait_for("segments/", 12, second)
    machines.kill(next(each for each in machines.workers.values() if each != second.machine))
    machines.add()
    assert second.end() == "SUCCEEDED", second.log
    night.check()
