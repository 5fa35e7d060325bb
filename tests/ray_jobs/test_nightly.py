"""The nightly run on a real local Ray."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml

from dpr.errors import EncoderError
from dpr.engine.stage import LocalExecutor
from dpr.nightly import run_recipe
from dpr.recipe import Recipe, load_recipe
from tests.ray_jobs.marks import ON_RAY
from tests.tiny import WORDS, Quiet, make_encoder, write_jsonl

pytestmark = ON_RAY


def write_recipe(folder: Path, encoder: Path) -> Path:
    path = folder / "recipe.yaml"
    document = {
        "store": "store",
        "corpus": {"path": "corpus.jsonl", "format": "jsonl", "slice_bytes": 20_000},
        "encoder": {"model": str(encoder), "pooling": "mean", "normalize": True, "title_join": "space"},
        "index": {"factory": "IVF8,PQ8x4"},  # trained on all CPUs, whoever runs it
        "resources": {"segment_rows": 150},
    }
    path.write_text(yaml.safe_dump(document))
    return path


def corpus(count: int) -> dict[str, str]:
    rng = np.random.default_rng(3)
    return {f"p{n}": " ".join(rng.choice(WORDS, rng.integers(3, 20))) for n in range(count)}


def test_ray_and_one_process_give_the_same_body(tmp_path: Path) -> None:
    from ray_jobs.connect import connected
    from ray_jobs.ray_executor import RayExecutor

    encoder = make_encoder(tmp_path / "encoder")
    made: dict[str, Recipe] = {}
    for name in ("ray", "local"):
        (tmp_path / name).mkdir()
        write_jsonl(tmp_path / name / "corpus.jsonl", corpus(600))
        made[name] = load_recipe(write_recipe(tmp_path / name, encoder))
    local = run_recipe(made["local"], LocalExecutor(), Quiet())
    with connected():
        executor = RayExecutor(made["ray"].resources)
        on_ray = run_recipe(made["ray"], executor, Quiet())
        assert on_ray.snapshot.body_bytes() == local.snapshot.body_bytes()

        # a second night: one edit, one copy, on both
        for name in ("ray", "local"):
            write_jsonl(tmp_path / name / "corpus.jsonl", corpus(600) | {"p1": "w1 w2", "copy": corpus(3)["p2"]})
        progress = Quiet()
        on_ray = run_recipe(made["ray"], executor, progress)
        assert (progress.rows["embed"], progress.rows["copy"]) == (1, 1)
        assert on_ray.snapshot.body_bytes() == run_recipe(made["local"], LocalExecutor(), Quiet()).snapshot.body_bytes()

        # an error of a worker arrives as the project's own, in one sentence
        spoilt = made["ray"].model_copy(update={"store": str(tmp_path / "spoilt")})
        weights = encoder / "model.safetensors"
        executor.share = _spoil(executor.share, weights)  # after planning, before the workers load the model
        with pytest.raises(EncoderError) as refused:
            run_recipe(spoilt, executor, Quiet())
        assert "\n" not in str(refused.value)


def _spoil(share, weights: Path):
    def spoiling(make, *args):
        weights.write_bytes(weights.read_bytes() + b"x")
        return share(make, *args)

    return spoiling


def test_stage_jobs_and_the_nightly_job_in_turn(tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path, make_encoder(tmp_path / "encoder"))
    write_jsonl(tmp_path / "corpus.jsonl", corpus(200))

    def run_job(job: str) -> tuple[str, str]:
        command = [sys.executable, "-m", f"ray_jobs.{job}", "--recipe", str(recipe)]
        ended = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
        assert ended.returncode == 0, ended.stderr
        return ended.stdout, ended.stderr

    assert "200 passages: 200 new, 200 to embed, 0 gone" in run_job("scan")[0]
    out, err = run_job("embed")
    assert "2 segments with 200 live passages" in out
    assert "2 of 2 units done now" in err
    assert "encoder fp32" in err or "encoder bf16" in err
    out, err = run_job("index")
    assert "200 passages" in out
    assert "0 of 2 units done now, 2 were done before" in err  # what the job before it made is used
    assert err.index("index   IVF8,PQ8x4: ") < err.index("train   ")  # chosen before it is made
    assert "published snapshot 1: 200 passages" in run_job("nightly")[0]
    out, err = run_job("nightly")
    assert "nothing changed, nothing was embedded" in out
    assert err == ""


def test_commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DPR_CACHE", str(tmp_path / "cache"))
    recipe = write_recipe(tmp_path, make_encoder(tmp_path / "encoder"))
    write_jsonl(tmp_path / "corpus.jsonl", corpus(60))
    store = str(tmp_path / "store")

    def dpr(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "ray_jobs.cli", *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)

    before = dpr("status", store)
    assert before.returncode == 5
    assert before.stderr == f"error: store {store} has no snapshot; `dpr run RECIPE` makes the first\n"
    planned = json.loads(dpr("plan", str(recipe), "--json").stdout)  # on Ray
    assert (planned["cost"]["passages"], planned["slices_read"]) == (60, planned["slices"])
    assert not (tmp_path / "store").exists()
    ran = json.loads(dpr("run", str(recipe), "--local", "--json").stdout)
    assert (ran["snapshot"], ran["published"]) == (1, True)
    assert ran["costs"]["estimate"] == planned["cost"]
    assert ran["costs"]["outcome"]["passages"] == 60
    assert [stage["stage"] for stage in ran["stages"]] == ["scan", "diff", "embed", "train", "build", "merge", "gate"]
    found = json.loads(dpr("search", store, corpus(60)["p5"], "-k", "3", "--json").stdout)
    assert found["hits"][0]["id"] == "p5"
    assert len(found["hits"]) == 3
    inspected = json.loads(dpr("inspect", store, "--json").stdout)
    assert sum(segment["rows"] for segment in inspected["segments"]) == 60
    assert dpr("verify", store, "--deep").returncode == 0
    segment = next((tmp_path / "store" / "segments").rglob("*.parquet"))
    segment.write_bytes(segment.read_bytes()[:-1] + b"?")
    broken = dpr("verify", store, "--deep")
    assert broken.returncode == 6
    assert "sha256" in broken.stdout
    assert dpr("rollback", store, "9").returncode == 5
    assert dpr("run", str(tmp_path / "none.yaml")).returncode == 2
