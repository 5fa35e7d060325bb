"""A night that is stopped, as a job or by Ctrl-C, ends soon, and leaves nothing behind but finished work."""

import os
import signal

import pytest

from dpr.store.lease_objects import read_state
from ray_jobs.submit import STOP_SECONDS
from tests.process_tree import descendants, title
from tests.ray_jobs.nodes.conftest import Night
from tests.ray_jobs.nodes.machines import Machines
from tests.ray_jobs.nodes.waiting import wait_until
from tests.ray_jobs.own_ray import STEPS

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
    assert "stopped by SIGTERM; finished work is kept" in first.log
    assert_all_is_free(machines, night)
    out, _ = submitter.communicate(timeout=STOP_SECONDS)
    assert (first.state, submitter.returncode) == ("STOPPED", 1), out
    go_on(machines, night)


def test_a_run_that_is_stopped_by_ctrl_c_frees_the_store_and_goes_on_later(machines: Machines, night: Night) -> None:
    machine = next(iter(machines.workers.values()))
    environment = machines.environment(machine.name, RAY_ADDRESS=machines.address)
    run = machine.place.beside(["python", "-m", "ray_jobs.nightly", "--recipe", str(night.recipe)], environment)
    wait_until(lambda: night.done("segments/") >= 3 or run.poll() is not None, "three segments are done", lambda: "")
    (driver,) = (pid for pid in [run.pid, *descendants(run.pid)] if title(pid).startswith("python -m ray_jobs.nightly"))
    os.kill(driver, signal.SIGINT)
    out, _ = run.communicate(timeout=STOP_SECONDS)
    assert run.returncode == 128 + signal.SIGINT, out
    assert "stopped by SIGINT; finished work is kept" in out
    assert_all_is_free(machines, night)
    go_on(machines, night)


def assert_all_is_free(machines: Machines, night: Night) -> None:
    """Fail unless nobody holds the store, and no process of the run is left."""
    lease = read_state(night.collection.store)
    assert lease is not None
    assert lease.released
    wait_until(lambda: not at_work(machines), "all processes end", lambda: str(at_work(machines)), STOP_SECONDS)


def go_on(machines: Machines, night: Night) -> None:
    """Submit the night again; it must do only what is not done."""
    done = night.done("segments/")
    second = night.submit(machines)
    assert second.end() == "SUCCEEDED", second.log
    assert f"{done} were done before" in second.log
    night.check()
