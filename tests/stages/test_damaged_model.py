"""The gate with the weights of a real model: damage is refused, and noise in the weights passes."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from pydoc_data.topics import topics

import pytest
import torch
from safetensors.torch import load_file, save_file

from dpr.encoder.sources import fetch_model
from dpr.errors import GateError
from dpr.formats.snapshots import latest_snapshot
from dpr.operations.first_recipe import default_model
from tests.collection import Collection

pytestmark = pytest.mark.slow
LAYER = "encoder.layer.5."
PAIRS_OF_A_TOPIC = 3


def sentences_and_what_follows() -> dict[str, tuple[str, str]]:
    """Return some sentences of Python's own documentation by id, each with the 40 words that stand after it."""
    pairs = {}
    for name in sorted(topics):
        sentences = [" ".join(piece.split()) for piece in re.split(r"(?<=[.!?])\s+", topics[name])]
        for number in range(0, min(len(sentences) - 2, 4 * PAIRS_OF_A_TOPIC), 4):
            after = " ".join(sentences[number + 1 :]).split()[:40]
            if len(sentences[number].split()) >= 8 and len(after) == 40:
                pairs[f"{name}-{number}"] = sentences[number], " ".join(after)
    return pairs


def changed_model(folder: Path, change: Callable[[str, torch.Tensor], torch.Tensor]) -> str:
    """Copy the model of the demo, with each of its weights as `change` returns it."""
    shutil.copytree(fetch_model(default_model()).folder, folder)
    weights = load_file(folder / "model.safetensors")
    torch.manual_seed(1)
    changed = {name: change(name, weight).contiguous() for name, weight in weights.items()}
    save_file(changed, folder / "model.safetensors", {"format": "pt"})
    return str(folder)


def with_noise(_name: str, weight: torch.Tensor) -> torch.Tensor:
    """Add noise of a tenth of the weights' own spread."""
    if not weight.is_floating_point() or weight.numel() < 2:
        return weight
    return weight + 0.1 * weight.std() * torch.randn_like(weight)


def with_layer_reset(name: str, weight: torch.Tensor) -> torch.Tensor:
    """Give one layer the weights with which its training began."""
    if LAYER not in name:
        return weight
    if weight.ndim == 2:
        return 0.02 * torch.randn_like(weight)
    return torch.ones_like(weight) if name.endswith("LayerNorm.weight") else torch.zeros_like(weight)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Collection:
    """Make a collection with the model as it is, whose live snapshot was measured with one sentence a passage."""
    folder, pairs = tmp_path_factory.mktemp("real"), sentences_and_what_follows()
    questions = folder / "questions.jsonl"
    rows = ({"question": question, "answers": [id_]} for id_, (question, _) in pairs.items())
    questions.write_text("".join(json.dumps(row) + "\n" for row in rows))
    gate = {"questions": str(questions), "min_recall": 0, "at": [1, 5, 20]}
    texts = {id_: text for id_, (_, text) in pairs.items()}
    resources = {"segment_rows": len(texts)}
    made = Collection(folder / "c", Path(), texts, encoder={"model": default_model()}, gate=gate, resources=resources)
    made.night()
    return made


@pytest.fixture
def collection(tmp_path: Path, made: Collection) -> Collection:
    """Give a copy of that collection."""
    return made.copy(tmp_path / "c")


def test_noise_in_the_weights_of_a_real_model_passes(collection: Collection, tmp_path: Path) -> None:
    collection.change(encoder={"model": changed_model(tmp_path / "noisy", with_noise)})
    assert collection.night().published


def test_a_real_model_with_a_layer_that_was_reset_is_refused(collection: Collection, tmp_path: Path) -> None:
    live = latest_snapshot(collection.store)
    assert live is not None
    collection.change(encoder={"model": changed_model(tmp_path / "damaged", with_layer_reset)})
    with pytest.raises(GateError, match=r"top-\d+ accuracy fell from 0\.\d+ to 0\.\d+ .* Lost were '"):
        collection.night()
    assert latest_snapshot(collection.store) == live
