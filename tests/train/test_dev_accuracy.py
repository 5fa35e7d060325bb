"""Accuracy during training equals a ranking by NumPy, whatever the chunks; and the schedule follows the formula."""

from pathlib import Path

import numpy as np
import pytest
import torch

from dpr.train.descent import Descent
from dpr.train.dev_accuracy import DevMeter
from dpr.train.train_recipe import Optimiser
from dpr.train.workers import Alone
from tests.train.tiny_training import CPU, make_set, make_spec, make_towers, write_examples


@pytest.mark.parametrize("chunk", [20, 10**6])
def test_accuracy_and_rank_are_those_of_numpy(tmp_path: Path, encoder: Path, chunk: int) -> None:
    spec = make_spec(encoder)
    dev, towers = make_set(write_examples(tmp_path / "dev.jsonl"), spec), make_towers(spec)
    found = DevMeter(dev, Alone(), CPU, chunk).measure(towers.question, towers.passage, 3)
    with torch.no_grad():
        question_QD = towers.question.vectors(dev.question_tokens).numpy()
        passage_PD = towers.passage.vectors(dev.passage_tokens).numpy()
    ranks = []
    for row, scores_P in enumerate(question_QD @ passage_PD.T):
        order = np.argsort(-scores_P).tolist()
        ranks.append(min(order.index(right) for right in dev.positives.of(row).tolist()) + 1)
    assert found.step == 3
    assert found.accuracy == pytest.approx(np.mean(np.array(ranks) == 1))
    assert found.average_rank == pytest.approx(np.mean(ranks))
    assert 1 < found.average_rank < 20


@pytest.mark.parametrize(("weight", "rank"), [(0.0, 40 - 1.5 + 1), (float("nan"), float("nan"))])
def test_vectors_that_tell_nothing_apart_answer_nothing(
    tmp_path: Path, encoder: Path, weight: float, rank: float
) -> None:
    spec = make_spec(encoder)
    dev, towers = make_set(write_examples(tmp_path / "dev.jsonl"), spec), make_towers(spec)
    with torch.no_grad():
        for name, weights in towers.weights.items():
            if "LayerNorm.weight" in name:
                weights.fill_(weight)  # zero: all vectors are equal
    found = DevMeter(dev, Alone(), CPU, 20).measure(towers.question, towers.passage, 3)
    assert found.accuracy == 0
    assert found.average_rank == pytest.approx(rank, nan_ok=True)


def test_the_learning_rate_rises_and_falls_to_zero() -> None:
    descent = Descent({"w": torch.nn.Parameter(torch.zeros(2, 2))}, Optimiser(learning_rate=1.0, warm_up=0.2), 20)
    rates = [descent.learning_rate(step) for step in range(20)]
    assert rates[:4] == pytest.approx([0.25, 0.5, 0.75, 1.0])
    assert rates[4:] == pytest.approx([(20 - step) / 16 for step in range(4, 20)])


def test_only_matrices_decay_and_long_gradients_are_scaled() -> None:
    weights = {"matrix": torch.nn.Parameter(torch.ones(2, 2)), "bias": torch.nn.Parameter(torch.ones(2))}
    descent = Descent(weights, Optimiser(learning_rate=0.1, warm_up=0.0, weight_decay=0.5, clip=1.0), 10)
    for weight in weights.values():
        weight.grad = torch.full_like(weight, 3.0)
    assert descent.clip() == pytest.approx(np.sqrt(6 * 9.0))
    together = torch.cat([weight.grad.flatten() for weight in weights.values() if weight.grad is not None])
    assert float(together.norm()) == pytest.approx(1.0, abs=1e-5)
    for weight in weights.values():
        weight.grad = torch.zeros_like(weight)
    descent.step(0)
    assert weights["matrix"].detach().flatten().tolist() == pytest.approx([0.95] * 4)
    assert weights["bias"].detach().tolist() == [1.0, 1.0]
