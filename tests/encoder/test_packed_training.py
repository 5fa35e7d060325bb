"""Training without padding: vectors and gradients are those of transformers' own padded forward pass."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import AutoModel, RobertaConfig, RobertaModel

from dpr.encoder.compute import Compute
from dpr.encoder.encode import TowerEncoder
from dpr.encoder.packed_training import MAX_PADDING, groups_of
from dpr.encoder.spec import resolve
from dpr.encoder.tower import TowerSpec
from dpr.encoder.trainable import TrainableNetwork, TrainableTower
from dpr.recipe import EncoderConfig
from tests.encoder.models import SIZES, random_tokens, save_bert, save_mpnet, save_tokenizer

LENGTHS = [60, 60, 41, 40, 39, 12, 12, 7, 5, 2]
CPU = torch.device("cpu")


def save_roberta(folder: Path) -> Path:
    torch.manual_seed(0)
    save_tokenizer(folder)
    RobertaModel(
        RobertaConfig(**SIZES | {"num_attention_heads": 2}, type_vocab_size=2), add_pooling_layer=False
    ).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module", params=["bert", "roberta"])
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model") / request.param
    return save_roberta(folder) if request.param == "roberta" else save_bert(folder, num_attention_heads=2)


def tower_of(model: Path, pooling: str) -> TowerSpec:
    return resolve(EncoderConfig(model=str(model), pooling=pooling, max_tokens=64)).passage  # type: ignore[arg-type]


def oracle(model: Path, pooling: str, weights_BD: Tensor) -> dict[str, Tensor]:
    """Gradients of a weighted sum of the vectors, one row at a time, by transformers."""
    body = AutoModel.from_pretrained(model, add_pooling_layer=False).eval()
    tokens, total = random_tokens(LENGTHS), torch.zeros(())
    for row in range(len(LENGTHS)):
        own = tokens.select(np.array([row]))
        inputs = {"input_ids": own.ids_T, "token_type_ids": own.types_T}
        moved = {name: torch.from_numpy(array.astype(np.int64))[None] for name, array in inputs.items()}
        hidden_LH = body(**moved).last_hidden_state[0]
        pooled = {"mean": hidden_LH.mean(0), "cls": hidden_LH[0], "max": hidden_LH.amax(0)}[pooling]
        total = total + pooled @ weights_BD[row]
    total.backward()
    return {name: weight.grad for name, weight in body.named_parameters() if weight.grad is not None}


def test_a_network_with_biases_in_attention_is_trained_padded(tmp_path: Path) -> None:
    spec = tower_of(save_mpnet(tmp_path, num_attention_heads=2), "mean")
    tower = TrainableTower(TrainableNetwork(spec, CPU, dropout=0.0), spec)
    assert not tower.is_packed
    tokens = random_tokens(LENGTHS)
    expected_BD = torch.from_numpy(TowerEncoder(spec, Compute("fp32", threads=1)).encode(tokens, np.float32))
    torch.testing.assert_close(tower.vectors(tokens).detach(), expected_BD, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("pooling", ["mean", "cls", "max"])
@pytest.mark.parametrize("packing", [True, False])
def test_gradients_are_those_of_transformers(model: Path, pooling: str, packing: bool) -> None:
    weights_BD = torch.from_numpy(np.random.default_rng(0).normal(size=(len(LENGTHS), 32)).astype(np.float32))
    spec = tower_of(model, pooling)
    network = TrainableNetwork(spec, CPU, dropout=0.0)
    tower = TrainableTower(network, spec, packing=packing)
    assert tower.is_packed == packing
    vectors_BD = tower.vectors(random_tokens(LENGTHS))
    torch.autograd.backward(vectors_BD, weights_BD)
    expected = oracle(model, pooling, weights_BD)
    found = {name.removeprefix("body."): weight.grad for name, weight in network.parameters().items()}
    assert found.keys() == expected.keys()
    for name, gradient in found.items():
        assert gradient is not None
        torch.testing.assert_close(gradient, expected[name], rtol=1e-4, atol=1e-5)


def test_dropout_is_that_of_the_model_unless_it_is_stated(model: Path) -> None:
    spec, tokens = tower_of(model, "mean"), random_tokens(LENGTHS)
    shares = []
    for dropout in (None, 0.5, 0.0):
        network = TrainableNetwork(spec, CPU, dropout)
        tower = TrainableTower(network, spec)
        first, second = (tower.vectors(tokens).detach() for _ in range(2))
        shares.append(float((first - second).norm() / first.norm()))
        network.set_training(on=False)
        torch.testing.assert_close(tower.vectors(tokens), tower.vectors(tokens))
    assert shares[1] > shares[0] > shares[2] == 0.0


def test_bf16_gives_nearly_the_same_gradients(model: Path) -> None:
    spec, tokens, found = tower_of(model, "mean"), random_tokens(LENGTHS), []
    for dtype in (torch.float32, torch.bfloat16):
        network = TrainableNetwork(spec, CPU, dropout=0.0)
        vectors_BD = TrainableTower(network, spec, dtype).vectors(tokens)
        assert vectors_BD.dtype == torch.float32
        torch.autograd.backward(vectors_BD, torch.ones_like(vectors_BD).cumsum(0))
        found.append(
            torch.cat([weight.grad.flatten() for weight in network.parameters().values() if weight.grad is not None])
        )
    assert float(torch.nn.functional.cosine_similarity(found[0], found[1], dim=0)) > 0.999


@pytest.mark.parametrize("seed", range(20))
def test_groups_hold_every_sequence_once_with_little_padding(seed: int) -> None:
    rng = np.random.default_rng(seed)
    lengths_B = rng.integers(1, 100, rng.integers(1, 50))
    groups = groups_of(lengths_B)
    assert np.concatenate([lengths for _, lengths in groups]).tolist() == lengths_B.tolist()
    assert [first for first, _ in groups] == np.cumsum([0, *(lengths.sum() for _, lengths in groups)])[:-1].tolist()
    assert all(lengths.max() * len(lengths) <= MAX_PADDING * lengths.sum() for _, lengths in groups)
