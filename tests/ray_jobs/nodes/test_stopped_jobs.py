"""A night that is stopped through the API of Ray Jobs ends soon, and leaves nothing behind but finished work."""

import pytest

from dpr.store.lease_objects import read_state
from ray_jobs.submit import STOP_SECONDS
from tests.ray_jobs.nodes.conftest import Night
from tests.ray_jobs.nodes.machines import Machines
from tests.ray_jobs.nodes.waiting import wait_until
from tests.ray_jobs.own_ray import STEPS, title

pytestmark = [pytest.mark.slow, pytest.mark.cluster, pytest.mark.timeout(1200)]


def at_work(machines: Machines) -> list[str]:
    """Return the titles of all processes of a run: its driver, and the workers that run steps."""
    titles = [title(pid) for machine in machines.workers.values() for pid in machine.place.pids()]
    return [each for each in titles if " -m ray_jobs.nightly" in each or STEPS.fullmatch(each)]


def test_a_job_that_is_stopped_frees_the_store_and_goes_on_later(machines: Machines, night: Night) -> None:
    submitter = night.submitter(machines)
    first = machines.job_of(str(night.recipe))
    night.wait_for("segments/", 3, first)
    assert at_work(machines)
    machines.ask(f"jobs/{first.number}/stop", {})
    wait_until(lambda: first.has_ended, "the job ends", lambda: first.log, STOP_SECONDS)
    lease = read_state(night.collection.store)
    assert lease is not None
    assert lease.released, first.log
    assert "stopped by SIGTERM; finished work is kept" in first.log
    wait_until(lambda: not at_work(machines), "all processes end", lambda: str(at_work(machines)), STOP_SECONDS)
    out, _ = submitter.communicate(timeout=STOP_SECONDS)
    assert (first.state, submitter.returncode) == ("STOPPED", 1), out
    done = night.done("segments/")
    second = night.submit(machines)
    assert second.end() == "SUCCEEDED", second.log
    assert f"{done} were done before" in second.log
    night.check()
