"""Faults of a cluster's machines are found before work starts, and named in a sentence."""

from dataclasses import replace
from pathlib import Path

import pytest

from dpr.errors import ClusterError, CorpusError, DprError, EncoderError, StoreError
from dpr.run import Plan
from dpr.store.base import probe_name
from ray_jobs.inspection import Needs, check_gpus, faults_here, needs_of
from tests.collection import Collection
from tests.ray_jobs.local_ray import LocalRay


@pytest.fixture(scope="module")
def needs(tmp_path_factory: pytest.TempPathFactory, static_encoder: Path) -> Needs:
    """What a machine needs for a run that this one can do."""
    collection = Collection(tmp_path_factory.mktemp("inspected"), static_encoder)
    collection.write_corpus()
    probe = probe_name()
    collection.store.put(probe, b"")
    return needs_of(Plan.of(collection.recipe), collection.recipe.store, probe)


@pytest.mark.without_ray
def test_the_machine_where_a_run_was_planned_can_do_it(needs: Needs) -> None:
    name, error = faults_here(needs)
    assert name
    assert error is None


@pytest.mark.without_ray
@pytest.mark.parametrize(
    ("fault", "kind", "sentence"),
    [
        ({"versions": {"python": "3.9.1"}}, ClusterError, r"python is 3\.\d+\.\d+ there and 3\.9\.1 where the run was"),
        ({"versions": {"ray": "2.59.0"}}, ClusterError, r"ray is 2\.6\S+ there and 2\.59\.0 where .* install the same"),
        ({"versions": {"nosuch": "1"}}, ClusterError, "nosuch is not installed there and 1 where the run was started"),
        (
            {"store": "elsewhere"},
            StoreError,
            "store .*elsewhere is another folder there than where the run was started",
        ),
        (
            {"encoder_id": "another"},
            EncoderError,
            "is encoder .* on this machine and another where the run was planned",
        ),
        ({"model": "nowhere"}, EncoderError, "model folder .*nowhere does not exist; name a folder"),
        ({"corpus_file": "/no/such/corpus"}, CorpusError, "corpus file /no/such/corpus cannot be read there"),
    ],
)
def test_what_a_machine_lacks_is_said_in_a_sentence(
    needs: Needs, fault: dict[str, object], kind: type[DprError], sentence: str, tmp_path: Path
) -> None:
    if "model" in fault:
        fault = {"encoder": needs.encoder.model_copy(update={"model": str(tmp_path / "nowhere")})}
    if "store" in fault:
        fault = {"store": str(tmp_path / "elsewhere")}
    _, error = faults_here(replace(needs, **fault))
    assert type(error) is kind
    with pytest.raises(kind, match=sentence):
        raise error


def test_too_few_gpus_are_named(local_ray: LocalRay, monkeypatch: pytest.MonkeyPatch) -> None:
    local_ray.use(cpus=2)
    check_gpus(0.0)
    with pytest.raises(ClusterError, match=r"gpus_per_encoder is 0\.5, and no machine of this Ray has more than 0"):
        check_gpus(0.5)
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "10.0.0.1")  # an autoscaler may add a machine that has them
    check_gpus(0.5)
