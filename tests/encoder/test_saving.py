"""Trained towers of every kind are saved so that this project and sentence-transformers read the same vectors."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from dpr.encoder.compute import Compute
from dpr.encoder.question_encoder import QuestionEncoder
from dpr.encoder.saving import save_tower, saved_format
from dpr.encoder.spec import resolve
from dpr.encoder.tokens import TowerTokenizer
from dpr.encoder.trainable import TrainableNetwork, TrainableTower
from dpr.errors import EncoderError
from dpr.recipe import EncoderConfig
from tests.encoder.kinds import save_kind, save_static

sentence_transformers = pytest.importorskip("sentence_transformers")

QUESTIONS = ["who was the first king of the city", "Paris", "ocean " * 90]
DENSE = (32, 48, {"activation_function": "torch.nn.modules.activation.Tanh"})
KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "a prompt, Dense and Normalize": ("bert", {"head": [DENSE, "Normalize"], "prompts": {"query": "the history: "}}),
    "a prompt that is not pooled": ("bert", {"include_prompt": False, "prompts": {"query": "the history: "}}),
    "LayerNorm, two poolings, cut vectors": (
        "roberta",
        {"pooling": ["cls", "mean"], "head": [(64, 32, {}), "LayerNorm"], "truncate_dim": 16},
    ),
    "distilbert": ("distilbert", {"pooling": "cls", "settings": {"do_lower_case": True}}),
    "mpnet": ("mpnet", {}),
    "t5": ("t5", {}),
    "qwen3": ("qwen3", {"pooling": "lasttoken"}),
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_a_changed_network_is_read_as_it_was_trained(tmp_path: Path, kind: str) -> None:
    network_name, stated = KINDS[kind]
    spec = resolve(EncoderConfig(model=str(save_kind(tmp_path / "start", network_name, **stated)))).question
    network = TrainableNetwork(spec, torch.device("cpu"), dropout=0.0)
    with torch.no_grad():
        for weight in network.parameters().values():
            weight.mul_(1.1)
    network.set_training(on=False)
    expected_QD = TrainableTower(network, spec).vectors(TowerTokenizer(spec).questions(QUESTIONS)).detach().numpy()
    save_tower(network.loaded, spec, {"query": spec.prefix, "document": ""}, tmp_path / "saved")
    saved = resolve(EncoderConfig(model=str(tmp_path / "saved"))).question
    assert {**saved.identity(), "digest": ""} == {**spec.identity(), "digest": ""}
    found_QD = QuestionEncoder(saved, Compute("fp32", threads=1)).encode(QUESTIONS)
    np.testing.assert_allclose(found_QD, expected_QD, rtol=1e-4, atol=1e-5)
    theirs = sentence_transformers.SentenceTransformer(str(tmp_path / "saved"), device="cpu", local_files_only=True)
    np.testing.assert_allclose(theirs.encode_query(QUESTIONS), expected_QD, rtol=1e-3, atol=1e-4)


def test_what_cannot_be_a_dpr_checkpoint_is_refused(tmp_path: Path) -> None:
    spec = resolve(EncoderConfig(model=str(save_kind(tmp_path / "start", "bert")))).passage
    assert saved_format("auto", spec) == "sentence-transformers"
    with pytest.raises(EncoderError, match=r"pools by mean and does not scale vectors.* set save_as to auto"):
        saved_format("dpr", spec)


def test_a_table_of_vectors_is_not_trained(tmp_path: Path) -> None:
    spec = resolve(EncoderConfig(model=str(save_static(tmp_path / "static", [], model2vec=False)))).passage
    with pytest.raises(EncoderError, match="is a table of token vectors, which is not trained here"):
        TrainableNetwork(spec, torch.device("cpu"))
