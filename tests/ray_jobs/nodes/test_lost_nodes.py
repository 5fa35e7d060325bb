"""A night on several nodes that is disturbed ends in the snapshot of an undisturbed one.

The first test is the reduced form that `make test` runs; `make test-cluster` runs all.
"""

import os
import signal
import time

import pytest

from tests.ray_jobs.nodes.conftest import Night
from tests.ray_jobs.nodes.jobs_api import Job
from tests.ray_jobs.nodes.machines import STORE_BYTES, Machine, Machines
from tests.ray_jobs.nodes.waiting import WAIT_SECONDS, wait_until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]

CUT_SECONDS = 90.0
"""Longer than the lease of the nights of these tests, and than Ray takes to give a node up."""
NOTICE_SECONDS = 10
"""Seconds of notice that a cloud gives before it takes a machine back."""
FULL_SHARE = 0.95


def other_than(machine: Machine, machines: Machines) -> Machine:
    """Return another worker."""
    return next(each for each in machines.workers.values() if each is not machine)


def started(machines: Machines, night: Night) -> Job:
    """Return a job that has begun to embed."""
    job = night.submit(machines)
    night.wait_for("segments/", 3, job)
    return job


def test_driver_and_node_are_killed_and_a_node_is_added(machines: Machines, night: Night) -> None:
    first = started(machines, night)
    os.kill(first.driver(), signal.SIGKILL)
    assert first.end() == "FAILED"
    second = night.submit(machines)
    night.wait_for("segments/", 12, second)
    machines.kill(other_than(second.machine, machines))
    machines.add()
    assert second.end() == "SUCCEEDED", second.log
    night.check()


@pytest.mark.cluster
def test_the_machine_of_the_driver_is_killed(machines: Machines, night: Night) -> None:
    first = started(machines, night)
    machines.kill(first.machine)
    night.run_again(machines, first)
    night.check()


@pytest.mark.cluster
def test_the_object_store_of_the_driver_is_full(machines: Machines, night: Night) -> None:
    job = started(machines, night)
    size = str(int(FULL_SHARE * STORE_BYTES))
    filling = machines.submit("python", "-m", "tests.ray_jobs.nodes.filling", job.machine.node_id, size, cpus=0)
    wait_until(lambda: "full" in filling.log, "the store is full", lambda: filling.log)
    assert job.state == "RUNNING"  # it is full while units are under way
    assert job.end() == "SUCCEEDED", job.log
    filling.stop()
    night.check()


@pytest.mark.cluster
@pytest.mark.parametrize("whose", ["driver", "another"])
def test_a_machine_is_cut_off_and_comes_back(machines: Machines, night: Night, whose: str) -> None:
    if not machines.places.can_cut:
        pytest.skip("only root can make a network to cut")
    submitter = night.submitter(machines)
    job = machines.job_of(str(night.recipe))
    night.wait_for("segments/", 3, job)
    machine = job.machine if whose == "driver" else other_than(job.machine, machines)
    machines.places.cut(machine.name)
    back_at = time.monotonic() + CUT_SECONDS
    out, _ = submitter.communicate(timeout=WAIT_SECONDS)
    if whose == "driver":
        assert submitter.returncode == 1, out  # it learns that the machine of the driver is gone
        night.run_again(machines, job)
    else:
        assert (submitter.returncode, "published snapshot 1" in out) == (0, True), out
    time.sleep(max(0.0, back_at - time.monotonic()))
    machines.places.mend(machine.name)
    machines.wait_for_return(machine)
    night.check()


@pytest.mark.cluster
def test_a_machine_is_taken_back_with_notice(machines: Machines, night: Night) -> None:
    job = night.submit(machines)
    night.wait_for("scans/", 1, job)  # the command takes seconds to start
    machine = other_than(job.machine, machines)
    drain = ("drain-node", f"--address={machines.address}", f"--node-id={machine.node_id}")
    why = ("--reason=DRAIN_NODE_REASON_PREEMPTION", "--reason-message=taken back")
    machines.ray(*drain, *why, f"--deadline-remaining-seconds={NOTICE_SECONDS}")
    time.sleep(NOTICE_SECONDS)
    machines.kill(machine)
    assert job.end() == "SUCCEEDED", job.log
    night.check()
