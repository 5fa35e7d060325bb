"""`dpr train` and `dpr mine`, as people call them; on Ray with two workers, one of which is killed."""

import gzip
import json
import lzma
import os
import signal
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from dpr.errors import ClusterError, TrainingError
from dpr.store import open_store
from dpr.train.checkpoints import latest_checkpoint
from dpr.train.example_files import read_examples
from dpr.train.train_recipe import TrainingData, TrainingResources
from dpr.train.trained_model import read_model
from tests.collection import FirstNights
from tests.process_tree import children, name_of, title
from tests.ray_jobs.conftest import Dpr
from tests.ray_jobs.local_ray import LocalRay
from tests.tiny import Quiet
from tests.train.tiny_training import make_recipe


def write_recipe(folder: Path, encoder: Path, **fields: Any) -> Path:
    path = folder / "train.yaml"
    path.write_text(yaml.safe_dump(make_recipe(folder, encoder, **fields).model_dump(mode="json")))
    return path


@pytest.mark.slow
@pytest.mark.without_ray
def test_a_trained_model_goes_straight_into_a_recipe(
    dpr: Dpr, tmp_path: Path, encoder: Path, first_nights: FirstNights
) -> None:
    code, out, err = dpr("train", write_recipe(tmp_path, encoder), "--local")
    assert code == 0
    assert "24 questions and 40 passages from 24 examples" in err
    assert "12 steps; dev accuracy" in out
    section = yaml.safe_load(out[out.index("encoder:") :])
    collection = first_nights.copy(tmp_path / "collection")
    recipe = yaml.safe_load(collection.write_recipe().read_text()) | section
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    code, out, _ = dpr("run", tmp_path / "recipe.yaml", "--local", "--json")
    assert (code, json.loads(out)["published"]) == (0, True)


@pytest.mark.slow
@pytest.mark.without_ray
def test_mined_negatives_are_training_data(dpr: Dpr, tmp_path: Path, encoder: Path, first_nights: FirstNights) -> None:
    collection = first_nights.copy(tmp_path / "collection")
    recipe = make_recipe(tmp_path, encoder)
    for mode, name in (("bm25", "plain.json"), ("dense", "packed.json.gz"), ("dense", "packed.json.xz")):
        out = tmp_path / name
        code, shown, _ = dpr("mine", collection.recipe.store, "--data", recipe.data.path, "--out", out, "--mode", mode)
        assert code == 0
        assert f"{out}: " in shown
        unpack = {".gz": gzip.decompress, ".xz": lzma.decompress}.get(out.suffix, bytes)
        documents = json.loads(unpack(out.read_bytes()))
        assert len(list(read_examples(TrainingData(path=str(out))))) == 24
        assert len(documents) == 24
        stored = set(collection.corpus.values())
        assert all(each["text"] in stored for document in documents for each in document["hard_negative_ctxs"])
        assert any(document["hard_negative_ctxs"] for document in documents)
    code, _, err = dpr("mine", collection.recipe.store, "--data", recipe.data.path, "--out", "s3://bucket/out.json")
    assert (code, err.count("\n")) == (14, 1)
    assert "s3://bucket/out.json is a URL" in err
    missing = tmp_path / "no" / "folder.json"
    code, _, err = dpr("mine", collection.recipe.store, "--data", recipe.data.path, "--out", missing)
    assert (code, err.count("\n")) == (14, 1)


@pytest.mark.without_ray
def test_mining_that_fails_leaves_the_file_as_it_was(dpr: Dpr, tmp_path: Path, first_nights: FirstNights) -> None:
    store = first_nights.copy(tmp_path / "collection").recipe.store
    data, out = tmp_path / "data.jsonl", tmp_path / "out" / "negatives.json"
    data.write_text('{"colour": "red"}\n')
    out.parent.mkdir()
    out.write_text("[]")
    code, _, err = dpr("mine", store, "--data", data, "--out", out)
    assert (code, err.count("\n")) == (2, 1)
    assert "training data hold no usable example (1 row: 1 for 'no question');" in err
    assert {path.name: path.read_text() for path in out.parent.iterdir()} == {"negatives.json": "[]"}


@pytest.mark.slow
@pytest.mark.without_ray
def test_what_ends_a_training_is_one_sentence_and_nothing_is_lost(dpr: Dpr, tmp_path: Path, encoder: Path) -> None:
    wild = {"epochs": 4, "learning_rate": 1e5, "warm_up": 0.5, "clip": 1e9}
    recipe = write_recipe(tmp_path, encoder, optimiser=wild, stopping={"every_steps": 1})
    code, _, err = dpr("train", recipe, "--local")
    (line,) = (line for line in err.splitlines() if line.startswith("error: "))
    assert code == 15
    assert "the checkpoint after step 1 is kept" in line
    kept = sorted(path for path in tmp_path.rglob("training/checkpoints/*"))
    assert len(kept) == 3

    code, _, err = dpr("train", write_recipe(tmp_path, encoder, stopping={"every_steps": 1}), "--local")
    (line,) = (line for line in err.splitlines() if line.startswith("error: "))
    assert code == 2
    assert "holds the training of another recipe" in line
    assert sorted(path for path in tmp_path.rglob("training/checkpoints/*")) == kept

    copied = {"data": {"path": str(tmp_path / "train.jsonl")}, "dev": {"path": str(tmp_path / "mixed.jsonl")}}
    some = (tmp_path / "train.jsonl").read_text().splitlines()[:3]
    (tmp_path / "mixed.jsonl").write_text("\n".join([*some, "{", (tmp_path / "dev.jsonl").read_text()]))
    code, _, err = dpr("train", write_recipe(tmp_path, encoder, store=str(tmp_path / "copies"), **copied), "--local")
    assert code == 0
    assert "dev: 11 questions and" in err
    assert "1 unusable row: 1 for 'broken JSON'" in err
    assert "dev: 3 of 11 questions are trained on, too" in err
    (kept_rows,) = (tmp_path / "copies" / "training").glob("quarantine-*.parquet")
    assert f"dev: the unusable rows are kept in training/{kept_rows.name} of the store" in err

    (tmp_path / "none.jsonl").write_text("")
    path = write_recipe(tmp_path, encoder, dev={"path": str(tmp_path / "none.jsonl")}, store=str(tmp_path / "more"))
    code, _, err = dpr("train", path, "--local")
    assert (code, f"dev data {tmp_path / 'none.jsonl'} hold no usable example (there are no rows)" in err) == (2, True)

    for name, document, message in (
        ("blank.jsonl", {"question": "w1", "positive": ["", " "]}, "1 row: 1 for 'no positive passage has a text'"),
        (
            "own.jsonl",
            {"question": "w1", "positive": "w2", "negative": "w1"},
            "1 row: 1 for 'the question is its own negative'",
        ),
    ):
        (tmp_path / name).write_text(json.dumps(document))
        path = write_recipe(tmp_path, encoder, data={"path": str(tmp_path / name)}, store=str(tmp_path / "other"))
        code, _, err = dpr("train", path, "--local")
        (line,) = (line for line in err.splitlines() if line.startswith("error: "))
        assert (code, message in line) == (2, True)


def test_two_workers_share_a_training_and_one_may_be_lost(local_ray: LocalRay, tmp_path: Path, encoder: Path) -> None:
    from ray_jobs.torch_trainer import train_on_ray  # Ray Train: 0.8 s of a CPU in each process that collects tests

    local_ray.end()  # on another Ray, an actor of an earlier test may still hold a part of a CPU
    local_ray.use(cpus=2, gpus=0)
    resources = {"workers": 2, "cpus_per_worker": 1}
    stopping, objective = {"every_steps": 20, "patience": 1000}, {"batch": 8, "refresh_negatives": True}
    fields = {"resources": resources, "optimiser": {"epochs": 40}, "stopping": stopping, "objective": objective}
    recipe = make_recipe(tmp_path, encoder, **fields)
    progress, killed = Quiet(), threading.Event()

    def kill_one() -> None:
        store = open_store(recipe.store)
        while latest_checkpoint(store) is None:
            time.sleep(0.05)
        (raylet,) = (pid for pid in children(os.getpid()) if name_of(pid) == "raylet")
        os.kill(next(pid for pid in children(raylet) if "RayTrainWorker" in title(pid)), signal.SIGKILL)
        killed.set()

    thread = threading.Thread(target=kill_one, daemon=True)
    thread.start()
    train_on_ray(recipe, progress)
    thread.join()
    model = read_model(open_store(recipe.store))
    assert killed.is_set()
    assert model is not None
    assert model.steps == 120
    assert any("a worker was lost" in message for message in progress.messages)
    assert any("goes on after" in message for message in progress.messages)


def test_an_error_of_the_project_ends_a_training_at_once(local_ray: LocalRay, tmp_path: Path, encoder: Path) -> None:
    from ray_jobs.torch_trainer import train_on_ray

    local_ray.use(cpus=2, gpus=0)
    optimiser = {"epochs": 4, "learning_rate": 1e30, "warm_up": 0.5, "clip": 1e9}
    recipe = make_recipe(tmp_path, encoder, optimiser=optimiser, resources={"cpus_per_worker": 1})
    progress = Quiet()
    with pytest.raises(TrainingError, match=r"at step \d of 12 \(epoch 1"):
        train_on_ray(recipe, progress)
    assert not any("lost" in message for message in progress.messages)


def test_too_few_gpus_are_named(local_ray: LocalRay) -> None:
    from ray_jobs.torch_trainer import scaling_of

    local_ray.use(cpus=2, gpus=0)
    with pytest.raises(ClusterError, match="workers is 3 with 1 GPUs each, and the cluster has 0 GPUs"):
        scaling_of(TrainingResources(workers=3, gpus_per_worker=1))
