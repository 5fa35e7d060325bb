"""Whole trainings: killed and continued, stopped early, stopped by NaN, refused, and used."""

import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModel, DPRContextEncoder, DPRQuestionEncoder

from dpr.encoder.compute import Compute
from dpr.encoder.encode import PassageEncoder
from dpr.encoder.question_encoder import QuestionEncoder
from dpr.encoder.spec import resolve
from dpr.errors import EncoderError, RecipeError, TrainingError
from dpr.store import open_store
from dpr.train.checkpoints import CURVE, latest_checkpoint, read_state
from dpr.train.run_training import train_here
from dpr.train.train_recipe import TrainRecipe
from dpr.train.trained_model import TrainedModel, read_model
from tests.collection import Collection
from tests.encoder.models import save_dpr
from tests.services.endpoint import S3Endpoint
from tests.tiny import Quiet
from tests.train.tiny_training import CPU, make_recipe

REFRESHING = {"batch": 8, "refresh_negatives": True}
"""Three steps an epoch."""
FP32 = Compute(precision="fp32")
pytestmark = pytest.mark.slow


def train(recipe: TrainRecipe) -> TrainedModel:
    return train_here(recipe, Quiet(), CPU)


def in_process(recipe: TrainRecipe, folder: Path, *arguments: str) -> int:
    path = folder / "recipe.json"
    path.write_text(recipe.model_dump_json())
    return subprocess.run([sys.executable, "-m", "tests.train.train_process", path, *arguments], check=False).returncode


def curve(recipe: TrainRecipe) -> list[list[float]]:
    store = open_store(recipe.store)
    checkpoint = latest_checkpoint(store)
    assert checkpoint is not None
    found: list[list[float]] = read_state(store, checkpoint).curve_S3.tolist()
    return found


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, encoder: Path) -> TrainRecipe:
    """The recipe of a training of one shared tower that is over."""
    recipe = make_recipe(tmp_path_factory.mktemp("trained"), encoder, objective=REFRESHING)
    train(recipe)
    return recipe


def test_training_learns_and_says_so(trained: TrainRecipe) -> None:
    model = read_model(open_store(trained.store))
    assert model is not None
    assert [each.step for each in model.measured] == [0, 4, 8, 12]
    losses = [loss for loss, _, _ in curve(trained)]
    assert len(losses) == 12
    assert np.mean(losses[-3:]) < np.mean(losses[:3]) - 0.5
    assert max(each.accuracy for each in model.measured[1:]) > model.measured[0].accuracy


@pytest.fixture(params=["folder", "moto"])
def store_url(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The store of a training, in a folder or in a bucket."""
    if request.param == "folder":
        return str(tmp_path / "store")
    endpoint: S3Endpoint = request.getfixturevalue("moto_endpoint")
    endpoint.client().create_bucket(Bucket="trainings")
    endpoint.use(monkeypatch)
    return "s3://trainings/tiny"


def test_a_killed_training_goes_on_with_the_same_loss_curve(
    trained: TrainRecipe, encoder: Path, tmp_path: Path, store_url: str
) -> None:
    recipe = make_recipe(tmp_path, encoder, store=store_url, objective=REFRESHING)
    assert in_process(recipe, tmp_path, "6") == -signal.SIGKILL  # after the checkpoint of step 4
    store = open_store(recipe.store)
    checkpoint = latest_checkpoint(store)
    assert checkpoint is not None
    assert checkpoint.step == 4
    assert read_state(store, checkpoint).negatives is not None
    assert read_model(store) is None
    model = train(recipe)
    assert curve(recipe) == pytest.approx(np.array(curve(trained)), abs=1e-6)
    names = [info.name for info in store.list("training/checkpoints/") if info.name.endswith(".json")]
    assert names == ["training/checkpoints/00000012.json"]
    assert resolve(model.encoder_in(store)).dim == 32  # it is used where it lies


def test_a_training_that_is_over_is_not_repeated_and_another_is_refused(trained: TrainRecipe) -> None:
    files = {path: path.stat().st_mtime_ns for path in Path(trained.store, "training").rglob("*")}
    train(trained)
    slower = trained.model_copy(update={"optimiser": trained.optimiser.model_copy(update={"learning_rate": 1e-5})})
    with pytest.raises(RecipeError, match=r"optimiser.learning_rate was 0.002 there, and is 1e-05"):
        train(slower)
    other = trained.model_copy(update={"data": trained.dev})
    with pytest.raises(RecipeError, match="the training data had other contents"):
        train(other)
    assert files == {path: path.stat().st_mtime_ns for path in Path(trained.store, "training").rglob("*")}


def wild(folder: Path, encoder: Path, learning_rate: float, **fields: Any) -> TrainRecipe:
    """Return a training that breaks, with a checkpoint after each step."""
    optimiser = {"epochs": 4, "learning_rate": learning_rate, "warm_up": 0.5, "clip": 1e9}
    return make_recipe(folder, encoder, optimiser=optimiser, stopping={"every_steps": 1}, **fields)


def test_a_loss_that_is_not_a_number_stops_and_names_the_batch(tmp_path: Path, encoder: Path) -> None:
    recipe = wild(tmp_path, encoder, 1e5)
    message = (
        r"at step 2 of 12 \(epoch 1, batch 2, whose first question is 'w.*'\); the checkpoint after step 1 is kept"
    )
    with pytest.raises(TrainingError, match=message):
        train(recipe)
    store = open_store(recipe.store)
    checkpoint = latest_checkpoint(store)
    assert checkpoint is not None
    assert checkpoint.step == 1
    assert read_model(store) is None
    tensors = load_file(Path(recipe.store, checkpoint.tensors.name))
    assert np.isfinite(tensors[CURVE].numpy()).all()
    body = AutoModel.from_pretrained(encoder, add_pooling_layer=False)
    body.load_state_dict({n.removeprefix("passage.body."): w for n, w in tensors.items() if n.startswith("passage.")})
    assert body(torch.tensor([[2, 6, 7, 8, 3]])).last_hidden_state.isfinite().all()


@pytest.mark.parametrize("fields", [{}, {"dev": None}])
def test_weights_that_a_step_has_broken_are_no_checkpoint(
    tmp_path: Path, encoder: Path, fields: dict[str, Any]
) -> None:
    recipe = wild(tmp_path, encoder, 1e30, **fields)
    with pytest.raises(
        TrainingError, match=r"vectors that are not finite at step 1 of 12 .* there is no checkpoint yet"
    ):
        train(recipe)
    assert latest_checkpoint(open_store(recipe.store)) is None


def test_training_ends_when_accuracy_does_not_become_better(tmp_path: Path, encoder: Path) -> None:
    still = {"epochs": 50, "learning_rate": 1e-12}
    model = train(make_recipe(tmp_path, encoder, optimiser=still, stopping={"every_steps": 2, "patience": 3}))
    assert (model.stopped_early, model.steps) == (True, 8)


def test_the_saved_model_is_read_by_sentence_transformers_and_by_a_run(trained: TrainRecipe, tmp_path: Path) -> None:
    from sentence_transformers import SentenceTransformer

    store = open_store(trained.store)
    model = read_model(store)
    assert model is not None
    section = model.encoder_in(store)
    texts = ["w1 w2 w3", "w4 w5"]
    ours = PassageEncoder(resolve(section).passage, FP32).encode(["", ""], texts)
    theirs = SentenceTransformer(section.model, device="cpu").encode(texts)
    np.testing.assert_allclose(ours, theirs, atol=1e-3)
    best = load_file(Path(trained.store, latest_checkpoint(store).best.name))  # type: ignore[union-attr]
    saved = AutoModel.from_pretrained(section.model, add_pooling_layer=False).state_dict()
    for name, weight in saved.items():
        torch.testing.assert_close(weight, best[f"passage.body.{name}"])
    card = Path(section.model, "README.md").read_text()
    assert "accuracy of the first passage" in card
    assert "24 questions and " in card
    assert "base_model" not in card.split("---")[1]  # a path is none
    collection = Collection(tmp_path, Path(section.model))
    collection.change(encoder=section.model_dump(exclude_none=True) | {"pooling": None, "title_join": None})
    assert collection.night().published


@pytest.mark.parametrize("save_as", ["auto", "dpr"])
def test_two_towers_become_two_folders(tmp_path: Path, encoder: Path, save_as: str) -> None:
    fields: dict[str, Any] = {"model": str(encoder), "pooling": "cls", "normalize": False, "title_join": "pair"}
    recipe = make_recipe(tmp_path, encoder, encoder=fields | {"max_tokens": 40}, towers="two", save_as=save_as)
    store = open_store(recipe.store)
    section = train(recipe).encoder_in(store)
    assert section.question_model is not None
    spec, before = resolve(section), resolve(recipe.encoder)
    for side in ("passage", "question"):
        found, start = getattr(spec, side).identity(), getattr(before, side).identity()
        assert found.pop("digest") != start.pop("digest")
        assert found == start
    if save_as == "dpr":
        texts = ["w1 w2 w3", "w4 w5"]
        config = json.loads(Path(section.model, "config.json").read_text())
        assert config["architectures"] == ["DPRContextEncoder"]
        theirs = DPRQuestionEncoder.from_pretrained(section.question_model)
        tokens = torch.tensor([[2, 6, 7, 8, 3]])
        ours = QuestionEncoder(spec.question, FP32).encode(texts)
        assert isinstance(DPRContextEncoder.from_pretrained(section.model), DPRContextEncoder)
        np.testing.assert_allclose(ours[0], theirs(tokens).pooler_output[0].detach(), atol=1e-5)


def test_dpr_checkpoints_stay_dpr_checkpoints(tmp_path: Path, encoder: Path) -> None:
    context, question = save_dpr(tmp_path / "start", projection_dim=24, num_attention_heads=2)
    fields = {"model": str(context), "question_model": str(question)}
    recipe = make_recipe(tmp_path / "run", encoder, encoder=fields, towers="two", optimiser={"epochs": 1})
    section = train(recipe).encoder_in(open_store(recipe.store))
    assert resolve(section).dim == 24
    assert DPRContextEncoder.from_pretrained(section.model).config.projection_dim == 24
    with pytest.raises(EncoderError, match="set save_as to auto or dpr"):
        train(recipe.model_copy(update={"save_as": "sentence-transformers", "store": str(tmp_path / "other")}))
