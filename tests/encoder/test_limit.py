"""The cost of a forward pass, against the architecture's own arithmetic and PyTorch's counter."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import AlbertConfig, AlbertModel, BertConfig, BertModel, DistilBertConfig, DistilBertModel

from dpr.encoder import limit
from dpr.encoder.limit import ForwardCost, peak
from dpr.encoder.network import Network

SIZES = {"vocab_size": 50, "hidden_size": 32, "num_attention_heads": 2, "intermediate_size": 80}


def test_bert_costs_what_its_matrices_say() -> None:
    network = Network(BertModel(BertConfig(**SIZES, num_hidden_layers=3)).eval(), None)
    cost = ForwardCost.of(network)
    assert cost.a_token == 3 * 2 * (4 * 32 * 32 + 2 * 32 * 80)
    # a head's scores and its weighed values: 2 * L * L * (width of the head) each
    assert cost(np.array([7, 100])) == cost.a_token * 107 + 3 * 2 * (2 * 2 * 16) * (7**2 + 100**2)


@pytest.mark.parametrize(
    "body",
    [
        AlbertModel(AlbertConfig(**SIZES, embedding_size=16, num_hidden_layers=3)),  # layers share their weights
        DistilBertModel(DistilBertConfig(vocab_size=50, dim=32, n_heads=2, hidden_dim=80, n_layers=2)),
        BertModel(BertConfig(**SIZES, num_hidden_layers=1)),
    ],
    ids=lambda body: type(body).__name__,
)
def test_linear_layers_are_those_that_pytorch_counts(body: torch.nn.Module) -> None:
    def counted(tokens: int) -> int:
        with torch.inference_mode(), FlopCounterMode(display=False) as counter:
            body(input_ids=torch.ones(1, tokens, dtype=torch.int64))
        return sum(flops for op, flops in counter.get_flop_counts()["Global"].items() if "mm" in str(op))

    body.eval()
    body.set_attn_implementation("sdpa")  # whose products the counter does not see on a CPU
    assert ForwardCost.of(Network(body, None)).a_token == (counted(48) - counted(16)) / 32


def test_a_device_is_measured_once_in_a_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limit, "_measured", {})
    monkeypatch.setattr(limit, "CPU_SECONDS", 0.01)
    monkeypatch.setattr(limit, "CPU_SIDE", 32)
    cpu = torch.device("cpu")
    with ThreadPoolExecutor(2) as pool:
        first = peak(cpu, torch.float32, pool, 2)
        assert first > 0
        assert peak(cpu, torch.float32, pool, 2) == first  # to the last bit: no second measurement gives that
        assert set(limit._measured) == {("cpu", torch.float32, 2)}
