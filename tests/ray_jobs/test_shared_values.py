"""What the workers of a stage share leaves the object store with its stage."""

import time
from functools import partial

import pytest
import ray
from ray._private import internal_api

from dpr.engine.stage import Step, Work
from dpr.recipe import Resources
from ray_jobs.ray_executor import RayExecutor
from tests.ray_jobs.local_ray import LocalRay
from tests.ray_jobs.steps import VALUE_BYTES, Pass, Sum, ones
from tests.ray_jobs.units import samples

PATIENCE_SECONDS = 60.0


@pytest.fixture(autouse=True)
def two_cpus(local_ray: LocalRay) -> None:
    local_ray.use(cpus=2)


def used_bytes() -> int:
    """Return what all objects in Ray's store take."""
    state = internal_api.get_state_from_address(ray.get_runtime_context().gcs_address)
    return int(internal_api.get_memory_info_reply(state).store_stats.object_store_bytes_used)


def run_stage(executor: RayExecutor) -> tuple[set[float], int]:
    """Return the sums that the units of a stage found, and what the store held at the first result."""
    work = Work.of(Step("sum", partial(Sum, executor.share(ones))))
    results = executor.run("scan", work, samples(3))
    first, held_bytes = next(results), used_bytes()
    return {first.size, *(result.size for result in results)}, held_bytes


def test_a_shared_value_is_freed_when_its_stage_has_ended() -> None:
    executor = RayExecutor(Resources())
    sums, held_bytes = run_stage(executor)
    assert sums == {VALUE_BYTES}
    assert held_bytes >= VALUE_BYTES
    last = time.monotonic() + PATIENCE_SECONDS
    while used_bytes() >= VALUE_BYTES:
        assert time.monotonic() < last, "the object store still holds the value"
        time.sleep(0.1)
    assert list(executor.run("scan", Work.of(Step("pass", Pass)), samples(1))) == samples(1)  # the executor goes on
