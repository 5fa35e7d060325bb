"""BERT as it is loaded to encode with: transformers' vectors without transformers, to which all else is left."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import BertModel

from dpr.encoder.bert import load_bert
from dpr.encoder.network import load_network
from dpr.encoder.spec import resolve
from dpr.recipe import EncoderConfig
from tests.encoder.models import SIZES, edit_json, save_bert

Weights = dict[str, torch.Tensor]


@pytest.mark.parametrize("act", ["gelu", "gelu_new", "relu"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_token_vectors_are_those_of_transformers(tmp_path: Path, act: str, dtype: torch.dtype) -> None:
    folder = save_bert(tmp_path, hidden_act=act, layer_norm_eps=1e-3)
    change_weights(folder, lambda weights: {name: weight.to(dtype) for name, weight in weights.items()})
    ours, theirs = load_bert(folder, "it"), BertModel.from_pretrained(folder, add_pooling_layer=False).float().eval()
    assert ours is not None
    generator = torch.Generator().manual_seed(4)
    ids_BL = torch.randint(0, SIZES["vocab_size"], (3, 50), generator=generator)
    types_BL, mask_BL = ids_BL % 2, torch.ones_like(ids_BL)
    mask_BL[1, 20:] = 0
    with torch.inference_mode():
        for mask in (mask_BL, None):
            inputs = {"input_ids": ids_BL, "token_type_ids": types_BL, "attention_mask": mask}
            found, expected = ours(**inputs).last_hidden_state, theirs(**inputs).last_hidden_state
            real = mask_BL.bool() if mask is not None else torch.ones_like(ids_BL).bool()
            torch.testing.assert_close(found[real], expected[real], atol=2e-6, rtol=1e-5)


def without(name: str) -> Callable[[Weights], Weights]:
    return lambda weights: {other: weight for other, weight in weights.items() if other != name}


@pytest.mark.parametrize(
    ("config", "change"),
    [
        ({"architectures": ["BertForMaskedLM"]}, None),
        ({"model_type": "roberta"}, None),
        ({"hidden_act": "silu"}, None),
        ({"is_decoder": True}, None),
        ({"position_embedding_type": "relative_key"}, None),
        ({"layer_norm_eps": None}, None),
        ({"vocab_size": 7}, None),
        ({"num_hidden_layers": 1}, None),
        ({}, without("encoder.layer.1.output.dense.bias")),
        ({}, lambda weights: {f"bert.{name}": weight for name, weight in weights.items()}),
        ({}, lambda weights: {**weights, "encoder.layer.0.new.weight": torch.zeros(2)}),
    ],
)
def test_anything_unusual_is_left_to_transformers(
    bert: Path, config: dict[str, Any], change: Callable[[Weights], Weights] | None
) -> None:
    edit_json(bert / "config.json", config)
    change_weights(bert, change or dict)
    assert load_bert(bert, "it") is None


def test_a_network_that_will_be_trained_is_that_of_transformers(shared_bert: Path) -> None:
    tower = resolve(EncoderConfig(model=str(shared_bert), pooling="mean")).passage
    assert isinstance(load_network(tower, training=True).body, BertModel)
    assert not isinstance(load_network(tower).body, BertModel)


@pytest.mark.slow
def test_a_model_is_loaded_without_transformers_and_always_as_it_is(bert: Path, tmp_path: Path) -> None:
    """Also the first time, and after its tokenizer's files changed, which are then read again."""
    script = """
import sys
from dpr.encoder.network import load_network
from dpr.encoder.spec import resolve
from dpr.encoder.tokens import TowerTokenizer
from dpr.recipe import EncoderConfig
config = EncoderConfig(model=sys.argv[1], pooling="mean")
spec = resolve(config)
load_network(spec.question)
tokens = TowerTokenizer(spec.question).questions(["The king of the ocean, the city and the river"])
print("transformers" in sys.modules, tokens.ids_T.tolist())
"""

    def run() -> list[str]:
        command = [sys.executable, "-c", script, str(bert)]
        environment = {"DPR_CACHE": str(tmp_path / "cache"), "PYTHONPATH": ":".join(sys.path)}
        return subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout.split(" ", 1)

    first, again = run(), run()
    assert (first[0], again[0], again[1]) == ("False", "False", first[1])
    for file in (bert / "tokenizer.json", bert / "vocab.txt"):
        if file.exists():
            file.write_text(file.read_text(encoding="utf-8").replace("king", "kinf"), encoding="utf-8")
    assert run()[1] != first[1]


def change_weights(folder: Path, change: Callable[[Weights], Weights]) -> None:
    """Write a folder's weights again."""
    path = folder / "model.safetensors"
    save_file(change(load_file(path)), path, metadata={"format": "pt"})
