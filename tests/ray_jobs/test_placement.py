"""Where Ray runs the steps of index stages, on a cluster that claims to have two GPUs, and on one without."""

import re
from pathlib import Path

import pytest
from ray.util.accelerators import accelerators

from dpr.engine.stage import Place, Step, Work
from dpr.errors import CorpusError, UnitError
from dpr.recipe import Resources
from ray_jobs import placement
from ray_jobs.placement import CODERS_PER_GPU, ROWS_PER_CODER, WITHOUT_FP8, Placement
from ray_jobs.ray_executor import RayExecutor
from tests.collection import FirstNights
from tests.ray_jobs.gpu_demand import GpuDemand
from tests.ray_jobs.local_ray import LocalRay
from tests.ray_jobs.steps import Fail, Refuse, Where
from tests.ray_jobs.units import Sample, samples


def where(on: Place) -> Work[Sample, Sample]:
    return Work.of(Step("where", Where, on))


def test_a_machine_of_one_cpu_has_room_for_all_operators(local_ray: LocalRay) -> None:
    """Uses a fresh Ray: on another, an actor of an earlier test may still hold a part of a CPU."""
    local_ray.end()
    local_ray.use(cpus=1)
    work = where("actor").then(Step("where", Where, "encoder")).then(Step("where", Where))
    done = list(RayExecutor(Resources()).run("embed", work, samples(3)))
    assert sorted(unit.number for unit in done) == [0, 1, 2]


@pytest.fixture
def two_cpus(local_ray: LocalRay) -> RayExecutor:
    local_ray.use(cpus=2, gpus=0)
    return RayExecutor(Resources())


@pytest.mark.parametrize("on", ["task", "actor", "encoder"])
@pytest.mark.parametrize("count", [1, 3])
def test_an_error_of_a_step_arrives_as_it_was_raised(two_cpus: RayExecutor, count: int, on: Place) -> None:
    with pytest.raises(CorpusError) as refused:
        list(two_cpus.run("scan", Work.of(Step("refuse", Refuse, on)), samples(count)))
    assert str(refused.value) in [f"unit {unit.record} is refused" for unit in samples(count)]


@pytest.mark.parametrize("on", ["task", "actor"])
def test_a_bug_in_a_step_is_named_in_a_sentence(two_cpus: RayExecutor, on: Place) -> None:
    with pytest.raises(UnitError) as failed:
        list(two_cpus.run("scan", Work.of(Step("fail", Fail, on)), samples(2)))
    pattern = r"stage scan failed in a worker: ValueError: [01] is unexpected; start the run again"
    assert re.fullmatch(pattern, str(failed.value))


def test_a_night_of_deletions_asks_for_no_gpu(
    tmp_path: Path,
    first_nights: FirstNights,
    two_cpus: RayExecutor,  # noqa: ARG001
) -> None:
    collection = first_nights.copy(tmp_path / "collection")
    collection.change(resources={"gpus_per_encoder": 1})
    del collection.corpus["p003"]
    with GpuDemand() as demand:
        body = collection.night(RayExecutor(collection.recipe.resources)).snapshot.body
    assert body.passages == 29
    assert (demand.gpus, demand.looks > 0) == (0.0, True)


@pytest.mark.parametrize(
    ("cpus", "resources", "counted"),
    [
        (2, Resources(), 0.5),  # all operators have room on a small machine
        (8, Resources(), 5.5),  # a second one would not fit
        (8, Resources(encoders=4), 0.5),  # all four fit here
        (8, Resources(cpus_per_encoder=7, max_encoders=4), 4.5),
        (8, Resources(cpus_per_encoder=16), 5.5),  # more than there are
    ],
)
def test_an_encoder_on_cpus_counts_as_most_of_those_that_it_uses(
    monkeypatch: pytest.MonkeyPatch, cpus: int, resources: Resources, counted: float
) -> None:
    monkeypatch.setattr(placement, "_largest_node", lambda: cpus)
    monkeypatch.setattr(placement, "_cluster_gpus", lambda: 0.0)
    assert Placement(resources).pool(Step("where", Where, "encoder"), 9)["num_cpus"] == counted


@pytest.mark.parametrize(
    ("resources", "cluster", "emulated"),
    [
        (Resources(), {"CPU": 8.0}, True),
        (Resources(), {"CPU": 8.0, "GPU": 1.0, "accelerator_type:H100": 1.0}, False),
        (Resources(), {"CPU": 8.0, "GPU": 2.0, "accelerator_type:A100": 1.0, "accelerator_type:H100": 1.0}, True),
        (Resources(gpus_per_encoder=0), {"CPU": 8.0, "GPU": 1.0, "accelerator_type:H100": 1.0}, True),
        (Resources(gpus_per_encoder=1), {"CPU": 8.0}, False),  # an autoscaling cluster may add any
    ],
)
def test_fp8_is_emulated_where_a_processor_is_known_to_lack_it(
    monkeypatch: pytest.MonkeyPatch, resources: Resources, cluster: dict[str, float], *, emulated: bool
) -> None:
    monkeypatch.setattr(placement.ray, "cluster_resources", lambda: cluster)
    assert Placement(resources).emulates_fp8() is emulated


@pytest.mark.parametrize("name", WITHOUT_FP8)
def test_ray_knows_the_gpus_without_fp8(name: str) -> None:
    assert name in vars(accelerators).values()


@pytest.mark.parametrize(("cpus", "gpus"), [(2, 0), (3, 2)])
def test_training_holds_a_gpu_and_coding_shares_them(local_ray: LocalRay, cpus: int, gpus: int) -> None:
    local_ray.use(cpus, gpus)
    executor = RayExecutor(Resources())
    assert executor.hardware().device == ("cuda" if gpus else None)
    assert executor.hardware().threads == cpus
    (trained,) = executor.run("train", where("trainer"), samples(1))
    assert len(trained.gpus) == (1 if gpus else 0)
    coded = list(executor.run("build", where("coder"), samples(40, rows=ROWS_PER_CODER)))
    assert sorted(unit.number for unit in coded) == list(range(40))
    assert {len(unit.gpus) for unit in coded} == {1 if gpus else 0}
    if gpus:
        on_first = {unit.process for unit in coded if unit.gpus == ("0",)}
        on_second = {unit.process for unit in coded if unit.gpus == ("1",)}
        assert 1 < len(on_first | on_second) <= 2 * CODERS_PER_GPU
        assert max(len(on_first), len(on_second)) <= CODERS_PER_GPU
    (alone,) = executor.run("build", where("coder"), samples(1))
    assert len(alone.gpus) == (1 if gpus else 0)
