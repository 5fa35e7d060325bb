"""`dpr train RECIPE --then RUN_RECIPE`: towers are trained, and published if they are better; all of it goes on."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from dpr.store import open_store
from dpr.train.trained_model import read_model
from tests.collection import Collection
from tests.ray_jobs.conftest import Dpr
from tests.ray_jobs.local_ray import LocalRay
from tests.train.tiny_training import make_recipe, write_examples

ASKED = 60
"""Questions of the gate, none of which is trained on."""


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory, encoder: Path) -> Collection:
    """A collection whose live snapshot answers some of the gate's questions, with the encoder as it comes."""
    folder = tmp_path_factory.mktemp("live")
    lines = write_examples(folder / "asked.jsonl", ASKED, seed=1).read_text().splitlines()
    examples = [json.loads(line) for line in lines]
    rows = [{"question": each["question"], "answers": [f"p{n}"]} for n, each in enumerate(examples)]
    (folder / "questions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    gate = {"questions": str(folder / "questions.jsonl"), "min_recall": 0, "at": [1, 5]}
    texts = {f"p{n}": each["positive"][0] for n, each in enumerate(examples)}
    collection = Collection(folder / "collection", encoder, texts, gate=gate, lexical={"build": False})
    collection.night()
    return collection


def write_recipes(folder: Path, live: Collection, encoder: Path, **fields: Any) -> tuple[Path, Path]:
    """Write the recipes of a training and of a copy of the collection."""
    collection = live.copy(folder)
    settings = {"objective": {"batch": 20}, "resources": {"cpus_per_worker": 1}, "dev": None} | fields
    recipe = make_recipe(folder, encoder, **settings).model_copy(update={"store": str(folder / "training-store")})
    write_examples(folder / "train.jsonl", 100)
    (folder / "train.yaml").write_text(yaml.safe_dump(recipe.model_dump(mode="json")))
    return folder / "train.yaml", collection.write_recipe()


def test_killed_at_every_step_it_goes_on_and_publishes_what_is_better(
    dpr: Dpr, local_ray: LocalRay, tmp_path: Path, live: Collection, encoder: Path
) -> None:
    train, run = write_recipes(tmp_path / "killed", live, encoder)
    checkpoint, model, segment = "*/training/checkpoints/*.json", "*/training/model.json", "store/segments/*/*.json"
    command = [sys.executable, "-m", "tests.ray_jobs.killed_chain", train, run, checkpoint, model, segment]
    killed = subprocess.run(command, capture_output=True, text=True, check=True)
    assert killed.stdout.split() == ["-9", "-9", "-9"], killed.stderr
    assert "goes on after 4 of 20 steps" in killed.stderr
    assert len(list(tmp_path.glob("killed/store/snapshots/*.json"))) == 1

    local_ray.use(cpus=2, gpus=0)
    code, out, err = dpr("train", train, "--then", run, "--json")
    assert code == 0, err
    assert (json.loads(out)["published"], json.loads(out)["snapshot"]) == (True, 2)
    assert "better than live snapshot 1: top-1 accuracy" in err
    code, out, err = dpr("train", train, "--then", run, "--json", "--local")
    assert (code, json.loads(out)["published"]) == (0, False)


@pytest.mark.slow
@pytest.mark.without_ray
def test_towers_that_are_not_better_are_not_published(
    dpr: Dpr, tmp_path: Path, live: Collection, encoder: Path
) -> None:
    optimiser = {"epochs": 1, "learning_rate": 1e-9}
    train, run = write_recipes(tmp_path / "same", live, encoder, optimiser=optimiser)
    for _ in range(2):
        code, _, err = dpr("train", train, "--then", run, "--local")
        assert code == 3
        assert "is not better than" in err
        assert "(top-1 accuracy 0." in err
    assert [path.name for path in (tmp_path / "same/store/snapshots").iterdir()] == ["00000001.json"]


@pytest.mark.without_ray
def test_a_run_that_cannot_be_compared_is_refused_before_anything_is_trained(
    dpr: Dpr, tmp_path: Path, live: Collection, encoder: Path
) -> None:
    train, run = write_recipes(tmp_path / "blind", live, encoder)
    document = yaml.safe_load(run.read_text())
    examples = [json.loads(line) for line in (tmp_path / "blind" / "train.jsonl").read_text().splitlines()]
    rows = [{"question": each["question"], "answers": ["p0"]} for each in examples[:30]]
    (tmp_path / "asked.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for change, message in (
        ({"gate": {"questions": str(tmp_path / "asked.jsonl")}}, "30 of the 30 questions in gate.questions of recipe"),
        ({"gate": document["gate"] | {"questions": None}}, "has no gate.questions, so nothing would show whether"),
        ({"corpus": {"path": str(tmp_path / "none.jsonl")}}, "none.jsonl"),
    ):
        run.write_text(yaml.safe_dump(document | change))
        code, _, err = dpr("train", train, "--then", run, "--local")
        assert code in (2, 9)
        assert message in err
        assert read_model(open_store(str(tmp_path / "blind" / "training-store"))) is None
