"""A night ends before its work begins if a machine cannot take part, or if the driver cannot join."""

import re
from pathlib import Path

import pytest

from dpr.errors import ClusterError
from tests.ray_jobs.nodes.conftest import Night
from tests.ray_jobs.nodes.jobs_api import Job
from tests.ray_jobs.nodes.machines import Machines

pytestmark = [pytest.mark.slow, pytest.mark.cluster, pytest.mark.timeout(1200)]


def refusal(night: Night, job: Job) -> str:
    """Return the only error line of a run that did nothing."""
    assert job.end() == "FAILED"
    assert night.done("") == 0
    (line,) = (line for line in job.log.splitlines() if line.startswith("error: "))
    return line


def test_a_machine_without_the_model(machines: Machines, night: Night) -> None:
    if not machines.places.can_cut:
        pytest.skip("without root all machines have the same folders")
    (machine,) = machines.add()
    hidden = machine.place.run(["mount", "-t", "tmpfs", "tmpfs", str(night.collection.model)], {"PATH": "/bin:/sbin"})
    assert hidden.returncode == 0, hidden.stderr
    try:
        sentence = refusal(night, night.submit(machines))
    finally:
        machines.kill(machine)
    assert re.search(r"error: (machine \S+: )?model ", sentence)


def test_a_machine_with_other_versions(machines: Machines, night: Night, tmp_path: Path) -> None:
    other = tmp_path / "older" / "faiss_cpu-1.2.3.dist-info"
    other.mkdir(parents=True)
    (other / "METADATA").write_text("Metadata-Version: 2.1\nName: faiss-cpu\nVersion: 1.2.3\n")
    path = machines.environment("")["PYTHONPATH"]
    (machine,) = machines.add(PYTHONPATH=f"{other.parent}:{path}")
    try:
        sentence = refusal(night, night.submit(machines))
    finally:
        machines.kill(machine)
    # the driver may run on that machine, where the others are the ones that differ
    assert re.search(
        r"machine \S+( \(and 2 more\))?: faiss-cpu is \S+ there and \S+ where the run was started", sentence
    )
    assert "1.2.3" in sentence


def test_a_machine_whose_credentials_have_expired(machines: Machines, night: Night) -> None:
    (machine,) = machines.add(AWS_ACCESS_KEY_ID="EXPIRED")
    try:
        sentence = refusal(night, night.submit(machines))
    finally:
        machines.kill(machine)
    assert "InvalidAccessKeyId" in sentence


def test_too_few_gpus(machines: Machines, night: Night) -> None:
    night.collection.change(resources={"gpus_per_encoder": 1})
    night.collection.write_recipe()
    sentence = refusal(night, night.submit(machines))
    assert "gpus_per_encoder is 1, and no machine of this Ray has more than 0 GPUs" in sentence


def test_a_driver_of_another_version(machines: Machines, night: Night) -> None:
    older = (
        "import ray; ray.__version__ = '2.0.1'; from ray_jobs.guard import guarded; from ray_jobs.nightly import run"
    )
    code = f"import sys; {older}; sys.argv = ['nightly', '--recipe', '{night.recipe}']; sys.exit(guarded(run))"
    environment = machines.environment(machines.head.name, RAY_ADDRESS=machines.address)
    ended = machines.head.place.run(["python", "-c", code], environment)
    assert ended.returncode == ClusterError.exit_code
    assert re.search(
        r"error: the Ray cluster \S+ .*has Ray 2\.6\S+ and Python 3\S+, and this .* Ray 2\.0\.1", ended.stderr
    )
