"""A training set of random words and towers for it, small enough for any test."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dpr.encoder.spec import EncoderSpec, resolve
from dpr.encoder.trainable import TrainableNetwork, TrainableTower
from dpr.recipe import EncoderConfig
from dpr.train.batch_plan import Batch, make_batch
from dpr.train.example_files import read_examples
from dpr.train.train_recipe import TrainingData, TrainRecipe
from dpr.train.training_set import TrainingSet, collect
from dpr.train.training_step import Towers
from tests.tiny import WORDS

CPU = torch.device("cpu")


def write_examples(path: Path, questions: int = 24, seed: int = 0) -> Path:
    """Write examples whose passages begin with the words of their question, and that share some passages.

    Each has a hard negative; that of every third example is another question's positive.
    """
    rng = np.random.default_rng(seed)
    question_words = [rng.choice(WORDS, 3, replace=False).tolist() for _ in range(questions)]
    passages = [" ".join([*words, *rng.choice(WORDS, rng.integers(2, 12))]) for words in question_words]
    documents = [
        {
            "question": " ".join(words),
            # every second question has two positives, one of which is that of the question before
            "positive": [passages[number], *([passages[number - 1]] if number % 2 else [])],
            "negative": passages[number - 2] if number % 3 == 0 else " ".join(rng.choice(WORDS, 6)),
        }
        for number, words in enumerate(question_words)
    ]
    path.write_text("\n".join(map(json.dumps, documents)))
    return path


def make_spec(model: Path, **fields: Any) -> EncoderSpec:
    settings: Mapping[str, Any] = {"pooling": "mean", "normalize": True, "title_join": "space", **fields}
    return resolve(EncoderConfig(model=str(model), **settings))


def make_set(path: Path, spec: EncoderSpec) -> TrainingSet:
    return collect(read_examples(TrainingData(path=str(path))), spec, path.with_suffix(".parquet"))


def make_towers(spec: EncoderSpec, *, shared: bool = False, dropout: float = 0.0, packing: bool = True) -> Towers:
    """Load both towers; the names of two separate ones begin with `question.` and `passage.`."""
    networks = {"passage": TrainableNetwork(spec.passage, CPU, dropout)}
    networks["question"] = networks["passage"] if shared else TrainableNetwork(spec.question, CPU, dropout)
    towers = {name: TrainableTower(networks[name], getattr(spec, name), packing=packing) for name in networks}
    some = {"shared": networks["passage"]} if shared else networks
    weights = {f"{side}.{name}": w for side, network in some.items() for name, w in network.parameters().items()}
    return Towers(towers["question"], towers["passage"], weights)


def gradients(towers: Towers) -> dict[str, torch.Tensor]:
    return {name: weight.grad.clone() for name, weight in towers.weights.items() if weight.grad is not None}


def first_batch(examples: TrainingSet, size: int = 12) -> Batch:
    """Return a batch of the first questions, each with its first positive and negative; some columns are masked."""
    questions_B = np.arange(size)
    negatives = np.concatenate([examples.negatives.of(row)[:1] for row in range(size)])
    return make_batch(
        examples, 0, questions_B, np.array([examples.positives.of(row)[0] for row in range(size)]), negatives
    )


def make_recipe(folder: Path, model: Path, **fields: Any) -> TrainRecipe:
    """Return a recipe whose data and store lie in a folder: 12 steps, and a measurement every 4."""
    folder.mkdir(exist_ok=True)
    train, dev = write_examples(folder / "train.jsonl"), write_examples(folder / "dev.jsonl", 8, seed=1)
    document: dict[str, Any] = {
        "store": str(folder / "store"),
        "encoder": {"model": str(model), "pooling": "mean", "normalize": True, "title_join": "space"},
        "data": {"path": str(train)},
        "dev": {"path": str(dev)},
        "objective": {"batch": 8},
        "optimiser": {"epochs": 4, "learning_rate": 2e-3, "dropout": 0.1},
        "stopping": {"every_steps": 4},
    }
    return TrainRecipe.model_validate(document | fields)
