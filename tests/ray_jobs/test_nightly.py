"""The nightly run on a real local Ray: the same snapshots as in one process, and its jobs as programs of their own."""

import os
import subprocess
import sys
from collections.abc import Mapping
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
from tests.ray_jobs.conftest import OUR_LINE
from tests.ray_jobs.local_ray import LocalRay
from tests.ray_jobs.own_ray import OwnRay
from tests.tiny import Quiet, make_encoder, random_texts

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
    collection = make_collection(tmp_path / "spoilt", make_encoder(tmp_path / "encoder"), 300)
    executor = SpoilingExecutor(collection.recipe.resources)
    executor.weights = tmp_path / "encoder" / "model.safetensors"
    capfd.readouterr()
    with pytest.raises(EncoderError) as refused:
        collection.night(executor)
    assert "\n" not in str(refused.value)
    assert capfd.readouterr() == ("", "")


def test_stage_jobs_and_the_nightly_job_in_turn(lasting_ray: OwnRay, tmp_path: Path, encoder: Path) -> None:
    recipe = make_collection(tmp_path, encoder, 200).write_recipe()

    def run_job(job: str, environment: Mapping[str, str] = lasting_ray.environment) -> tuple[str, str]:
        """Return what a job printed, which joins a Ray that runs; on stderr are lines of progress, and no other."""
        command = [sys.executable, "-m", f"ray_jobs.{job}", "--recipe", str(recipe)]
        ended = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300, env=environment)
        assert ended.returncode == 0, ended.stderr
        assert [line for line in ended.stderr.splitlines() if not OUR_LINE.fullmatch(line)] == []
        return ended.stdout, ended.stderr

    assert run_job("scan")[0] == "200 passages: 200 new, 200 to embed, 0 gone\n"
    out, err = run_job("embed")
    assert out == "2 segments with 200 live passages\n"
    assert "2 of 2 units done now" in err
    assert "encoder   fp32" in err or "encoder   bf16" in err
    out, err = run_job("index")
    assert out.endswith(" (IVF8,PQ8x4) with 200 passages\n")
    assert "0 of 2 units done now, 2 were done before" in err  # what the job before it made is used
    assert err.index("index     IVF8,PQ8x4: ") < err.index("train   ")  # chosen before it is made
    assert run_job("nightly", os.environ)[0].startswith("published snapshot 1: 200 passages ")  # it starts a Ray
    out, err = run_job("nightly")
    assert "nothing changed, nothing was embedded" in out
    assert err == ""


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
