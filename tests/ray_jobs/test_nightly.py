"""The nightly run on a real local Ray: the same snapshots as in one process."""

from pathlib import Path
from typing import Any

import pytest

from dpr.engine.executor import LocalExecutor
from dpr.engine.stage import Work
from dpr.errors import EncoderError
from dpr.run import Plan, Run
from dpr.stages.scan import scan
from dpr.stages.segment_rows import MIN_ROWS, segment_rows
from ray_jobs.ray_executor import RayExecutor
from tests.collection import Collection
from tests.ray_jobs.local_ray import LocalRay
from tests.tiny import Quiet, make_static_encoder, random_texts

INDEX = {"factory": "IVF8,PQ8x4"}


def make_collection(folder: Path, encoder: Path, rows: int) -> Collection:
    """Make a collection of several slices and segments, which is trained on all CPUs wherever it runs."""
    made = Collection(folder, encoder, random_texts(rows, max_words=20), index=INDEX)
    made.change(corpus={"slice_bytes": 20_000}, resources={"segment_rows": 150})
    return made


@pytest.fixture
def on_ray(local_ray: LocalRay) -> None:
    local_ray.use()


@pytest.mark.usefixtures("on_ray")
def test_ray_and_one_process_give_the_same_body(
    tmp_path: Path, encoder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    here, there = (make_collection(tmp_path / name, encoder, 600) for name in ("here", "there"))
    executor = RayExecutor(there.recipe.resources)
    assert there.night(executor).snapshot.body.to_bytes() == here.night().snapshot.body.to_bytes()

    # a second night with one edit and one copy
    for collection in (here, there):
        collection.corpus |= {"p001": "w1 w2", "copy": collection.corpus["p002"]}
    progress = Quiet()
    assert there.night(executor, progress).snapshot.body.to_bytes() == here.night().snapshot.body.to_bytes()
    assert (progress.rows["embed"], progress.rows["copy"]) == (1, 1)
    assert capfd.readouterr() == ("", "")  # nothing of Ray's own


class SpoilingExecutor(RayExecutor):
    """Appends a byte to a model after the run was planned and before workers load it."""

    weights: Path

    def begin(self, stage: str, work: Work[Any, Any]) -> None:
        self.weights.write_bytes(self.weights.read_bytes() + b"x")
        super().begin(stage, work)


@pytest.mark.usefixtures("on_ray")
def test_an_error_of_a_worker_arrives_in_one_sentence(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    collection = make_collection(tmp_path / "spoilt", make_static_encoder(tmp_path / "encoder"), 300)
    executor = SpoilingExecutor(collection.recipe.resources)
    executor.weights = tmp_path / "encoder" / "model.safetensors"
    capfd.readouterr()
    with pytest.raises(EncoderError) as refused:
        collection.night(executor)
    assert "\n" not in str(refused.value)
    assert capfd.readouterr() == ("", "")


@pytest.mark.usefixtures("on_ray")
@pytest.mark.parametrize("resources", [{}, {"encoders": 2}, {"cpus_per_encoder": 1}])
def test_ray_and_one_process_cut_segments_alike(tmp_path: Path, encoder: Path, resources: dict[str, int]) -> None:
    collection = Collection(tmp_path, encoder, random_texts(40))
    collection.change(resources={"segment_rows": 2**31, "cpus_per_encoder": None, **resources})
    collection.write_corpus()
    plan, executor = Plan.of(collection.recipe), RayExecutor(collection.recipe.resources)
    here, there = Run(plan, LocalExecutor(), Quiet()), Run(plan, executor, Quiet())
    scans = scan(here)
    rows = segment_rows(here, here.slices, scans)
    assert segment_rows(there, there.slices, scans) == rows
    assert MIN_ROWS < rows < 2**31
