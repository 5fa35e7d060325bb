"""Where Ray runs the steps of index stages, on a cluster that is said to have two GPUs, and on one without."""

import os
import time
from collections.abc import Iterator

import pytest

from dpr.errors import CorpusError
from dpr.engine.stage import Step, Unit
from dpr.recipe import Resources
from tests.ray_jobs.marks import ON_RAY

pytestmark = ON_RAY


class Where:
    """Says which GPUs Ray gave it, and which process it is."""

    def __call__(self, unit: Unit) -> Unit:
        import ray

        time.sleep(0.05)
        return unit | {"gpus": ray.get_runtime_context().get_accelerator_ids()["GPU"], "process": os.getpid()}


class Refuse:
    """Fails as the project does."""

    def __call__(self, unit: Unit) -> Unit:
        raise CorpusError(f"unit {unit['record']} is refused")


def units(count: int) -> list[Unit]:
    return [{"number": n, "record": f"runs/1/{n}.json"} for n in range(count)]


@pytest.fixture(params=[0, 2])
def gpus(request: pytest.FixtureRequest) -> Iterator[int]:
    from ray_jobs.connect import connected

    with connected(cpus=3, gpus=request.param):
        yield request.param


def test_training_holds_a_gpu_and_coding_shares_them(gpus: int) -> None:
    from ray_jobs.ray_executor import CODERS_PER_GPU, RayExecutor

    executor = RayExecutor(Resources())
    assert executor.hardware().device == ("cuda" if gpus else None)
    assert executor.hardware().threads == 3
    (trained,) = executor.run("train", [Step(Where, on="trainer")], units(1))
    assert len(trained["gpus"]) == (1 if gpus else 0)
    coded = list(executor.run("build", [Step(Where, on="coder")], units(40)))
    assert sorted(unit["number"] for unit in coded) == list(range(40))
    assert {len(unit["gpus"]) for unit in coded} == {1 if gpus else 0}
    if gpus:
        on_first = {unit["process"] for unit in coded if unit["gpus"] == ["0"]}
        on_second = {unit["process"] for unit in coded if unit["gpus"] == ["1"]}
        assert 1 < len(on_first | on_second) <= 2 * CODERS_PER_GPU
        assert max(len(on_first), len(on_second)) <= CODERS_PER_GPU
    (alone,) = executor.run("build", [Step(Where, on="coder")], units(1))
    assert len(alone["gpus"]) == (1 if gpus else 0)


@pytest.mark.parametrize("count", [1, 3])
def test_an_error_of_a_task_arrives_as_it_was_raised(count: int) -> None:
    from ray_jobs.connect import connected
    from ray_jobs.ray_executor import RayExecutor

    with connected(cpus=2, gpus=0), pytest.raises(CorpusError) as refused:
        list(RayExecutor(Resources()).run("scan", [Step(Refuse)], units(count)))
    assert str(refused.value) in [f"unit {unit['record']} is refused" for unit in units(count)]


def test_a_machine_of_one_cpu_has_room_for_all_operators() -> None:
    from ray_jobs.connect import connected
    from ray_jobs.ray_executor import RayExecutor

    steps = [Step(Where, on="actor"), Step(Where, on="encoder"), Step(Where)]
    with connected(cpus=1):
        done = list(RayExecutor(Resources()).run("embed", steps, units(3)))
    assert sorted(unit["number"] for unit in done) == [0, 1, 2]
