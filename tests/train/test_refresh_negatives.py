"""Refreshed negatives equal a ranking by NumPy without passages that answer; later epochs use them."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from dpr.errors import RecipeError
from dpr.train.all_vectors import AllVectors
from dpr.train.refresh_negatives import NegativeFinder
from dpr.train.train_recipe import load_train_recipe
from dpr.train.training_set import KEPT_NEGATIVES
from dpr.train.workers import Alone
from tests.train.tiny_training import CPU, make_set, make_spec, make_towers, write_examples


def test_they_are_the_best_passages_that_do_not_answer(tmp_path: Path, encoder: Path) -> None:
    path = write_examples(tmp_path / "train.jsonl", 60)
    documents = [json.loads(line) for line in path.read_text().splitlines()]
    for document in documents[::2]:
        document["answers"] = document["positive"][0].split()[:1]  # others begin with this word or hold it, too
    path.write_text("\n".join(map(json.dumps, documents)))
    spec = make_spec(encoder)
    examples, towers = make_set(path, spec), make_towers(spec)
    finder = NegativeFinder(examples, spec.passage, Alone(), AllVectors(Alone(), CPU, 50))
    found = finder.find(towers.question, towers.passage)

    with torch.no_grad():
        question_ED = towers.question.vectors(examples.question_tokens).numpy()
        passage_PD = towers.passage.vectors(examples.passage_tokens).numpy()
    texts = list(dict.fromkeys(text for each in documents for text in (*each["positive"], each["negative"])))
    assert len(texts) == len(examples.passage_tokens)
    left_out = 0
    for row, scores_P in enumerate(question_ED @ passage_PD.T):
        order = [place for place in np.argsort(-scores_P).tolist() if texts[place] not in documents[row]["positive"]]
        answers = set(documents[row].get("answers", []))
        right = [place for place in order if not answers & set(texts[place].split())][:KEPT_NEGATIVES]
        left_out += right != order[:KEPT_NEGATIVES]
        assert found.of(row).tolist() == right
    assert left_out > 5


def test_negatives_that_no_step_draws_are_not_found_again(tmp_path: Path) -> None:
    path = tmp_path / "train.yaml"
    text = "store: s\nencoder: {model: m}\ndata: {path: p}\nobjective: {refresh_negatives: true, hard_negatives: 0}\n"
    path.write_text(text)
    with pytest.raises(RecipeError, match="refresh_negatives finds hard negatives, and hard_negatives is 0"):
        load_train_recipe(path)
