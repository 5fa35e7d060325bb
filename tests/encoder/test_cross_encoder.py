"""Scores of cross-encoders against sentence-transformers and a plain formula, and what is refused."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from sentence_transformers import CrossEncoder as TheirCrossEncoder
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from dpr.encoder.compute import Compute
from dpr.encoder.cross_encoder import CrossEncoder
from dpr.encoder.cross_encoder_spec import pin_cross_encoder, resolve_cross_encoder
from dpr.errors import EncoderError
from dpr.recipe_service import RerankConfig
from tests.encoder.cross_encoders import (
    identity_in_config,
    save_cross_bert,
    save_cross_distilbert,
    save_cross_modernbert,
    save_cross_xlm_roberta,
    save_installed,
    tanh_of_old,
)
from tests.encoder.models import TEXTS, edit_json, save_bert, save_dpr, save_sentence_transformer, save_to_hub_cache

QUESTIONS = ["who was the king of the city?", "ocean " * 400, "", "中国水人"]
PAIRS = [(question, text) for question in QUESTIONS for text in TEXTS]
"""Among them pairs of which the question, the passage or both are too long, and empty ones."""


def opened(folder: Path, compute: Compute = Compute(), **fields: Any) -> CrossEncoder:
    return CrossEncoder(resolve_cross_encoder(RerankConfig(model=str(folder), **fields)), compute)


def scores_of(encoder: CrossEncoder, pairs: list[tuple[str, str]] = PAIRS) -> np.ndarray[Any, np.dtype[np.float64]]:
    return encoder.score([question for question, _ in pairs], [text for _, text in pairs])


def with_prompt(folder: Path) -> Path:
    return save_installed(save_cross_bert, folder, prompts={"ask": "the question: "}, default_prompt_name="ask")


@pytest.mark.parametrize(
    ("save", "activation"),
    [
        (save_cross_bert, "Sigmoid"),
        (identity_in_config, "Identity"),
        (tanh_of_old, "Tanh"),
        (save_cross_distilbert, "Sigmoid"),
        (save_cross_modernbert, "Sigmoid"),
        (save_cross_xlm_roberta, "Sigmoid"),
        (lambda folder: save_installed(save_cross_bert, folder, activation_fn=torch.nn.Identity()), "Identity"),
        (lambda folder: save_installed(save_cross_bert, folder, max_length=40), "Sigmoid"),
        (lambda folder: save_installed(save_cross_xlm_roberta, folder), "Sigmoid"),
        (with_prompt, "Sigmoid"),
    ],
    ids=["bert", "4", "3", "distilbert", "modernbert", "xlm-roberta", "6", "6-max-length", "6-xlm-roberta", "prompt"],
)
def test_scores_are_those_of_sentence_transformers(
    tmp_path: Path, save: Callable[[Path], Path], activation: str
) -> None:
    folder = save(tmp_path / "model")
    encoder = opened(folder)
    assert encoder.spec.activation == activation
    expected = TheirCrossEncoder(str(folder), device="cpu").predict(PAIRS)
    assert np.ptp(expected) > 0.1  # otherwise any score would pass
    np.testing.assert_allclose(scores_of(encoder), expected, atol=1e-4, rtol=0)


def test_one_of_several_labels_is_the_score(tmp_path: Path) -> None:
    folder = save_cross_bert(tmp_path / "model", num_labels=3)
    expected = TheirCrossEncoder(str(folder), device="cpu").predict(PAIRS)
    for label in range(3):
        np.testing.assert_allclose(scores_of(opened(folder, label=label)), expected[:, label], atol=1e-4, rtol=0)


def test_scores_follow_the_plain_formula(tmp_path: Path) -> None:
    folder = save_cross_bert(tmp_path / "model")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    network = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    for (question, text), score in zip(PAIRS, scores_of(opened(folder)), strict=True):
        # in a list, since a single question with an empty passage would not be treated as a pair
        inputs = tokenizer([(question, text)], truncation="longest_first", max_length=300, return_tensors="pt")
        with torch.inference_mode():
            logit = float(network(**inputs).logits[0, 0])
        assert score == pytest.approx(1 / (1 + np.exp(-logit)), abs=1e-5)


@pytest.mark.parametrize("save", [identity_in_config, save_cross_xlm_roberta])
def test_a_score_does_not_depend_on_its_batch(tmp_path: Path, save: Callable[[Path], Path]) -> None:
    folder = save(tmp_path / "model")
    alone = [float(scores_of(opened(folder, Compute(threads=1)), [pair])[0]) for pair in PAIRS[::5]]
    for compute in (Compute(threads=2), Compute(tokens_per_batch=64), Compute(tokens_per_batch=100_000)):
        np.testing.assert_allclose(scores_of(opened(folder, compute))[::5], alone, atol=1e-5, rtol=0)


def test_a_sigmoid_near_one_still_orders(tmp_path: Path) -> None:
    """In fp32 both were exactly 1."""
    folder = save_cross_bert(tmp_path / "model")
    weights = load_file(folder / "model.safetensors")
    weights["classifier.bias"] += 25.0
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    sigmoid, logits = scores_of(opened(folder)), scores_of(opened(identity_of(folder)))
    assert np.float32(sigmoid.min()) == 1.0
    assert np.argsort(sigmoid).tolist() == np.argsort(logits).tolist()


def identity_of(folder: Path) -> Path:
    edit_json(folder / "config.json", {"sentence_transformers": {"activation_fn": "torch.nn.modules.linear.Identity"}})
    return folder


def test_no_pairs_have_no_scores(tmp_path: Path) -> None:
    assert scores_of(opened(save_cross_bert(tmp_path / "model")), []).shape == (0,)


def test_the_id_changes_with_all_that_scores_depend_on(tmp_path: Path) -> None:
    def id_of(folder: Path, **fields: Any) -> str:
        return resolve_cross_encoder(RerankConfig(model=str(folder), **fields)).reranker_id

    same = [id_of(save_cross_bert(tmp_path / name)) for name in ("a", "b")]
    others = [
        id_of(save_cross_bert(tmp_path / "weights", seed=1)),
        id_of(identity_in_config(tmp_path / "activation")),
        id_of(save_installed(save_cross_bert, tmp_path / "length", max_length=40)),
        id_of(with_prompt(tmp_path / "prompt")),
        *(id_of(save_cross_bert(tmp_path / "labels", num_labels=2), label=label) for label in (0, 1)),
    ]
    assert same[0] == same[1]
    assert len({same[0], *others}) == 1 + len(others)


def lose_weight(folder: Path, name: str) -> Path:
    weights = load_file(folder / "model.safetensors")
    del weights[name]
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    return folder


def only_a_pickle(folder: Path) -> Path:
    (save_cross_bert(folder) / "model.safetensors").rename(folder / "pytorch_model.bin")
    return folder


def changed(folder: Path, **fields: Any) -> Path:
    edit_json(save_cross_bert(folder) / "config.json", fields)
    return folder


HEADLESS = "has no head that scores; a re-ranker is a cross-encoder .*, so name one"


@pytest.mark.parametrize(
    ("save", "fields", "message"),
    [
        (save_bert, {}, f"is a BertModel, which {HEADLESS}"),
        (lambda f: save_dpr(f)[1], {}, f"is a DPRQuestionEncoder, which {HEADLESS}"),
        (save_sentence_transformer, {}, r"consists of Transformer, Pooling, Normalize \(modules.json\).* single texts"),
        (lambda f: changed(f, architectures=["Qwen3ForCausalLM"]), {}, f"is a Qwen3ForCausalLM, which {HEADLESS}"),
        (lambda f: lose_weight(save_cross_bert(f), "classifier.weight"), {}, "lacks 1 of the weights .*classifier.wei"),
        (lambda f: lose_weight(save_cross_bert(f), "bert.pooler.dense.bias"), {}, "lacks 1 of the weights .*pooler"),
        (only_a_pickle, {}, "only as a pickle"),
        (lambda f: changed(f, model_type="new", auto_map={"AutoConfig": "own.Config"}), {}, "code .* is never run"),
        (lambda f: changed(f, pad_token_id=None), {}, "has no pad_token_id"),
        (lambda f: changed(f, sentence_transformers={"activation_fn": "os.system"}), {}, "the activation os.system"),
        (lambda f: save_cross_bert(f, num_labels=3), {}, r"gives 3 labels, .* set rerank.label .* from 0 to 2"),
        (lambda f: save_cross_bert(f, num_labels=3), {"label": 3}, "rerank.label is 3, .* has 3 labels; .* 2 at most"),
        (save_cross_bert, {"label": 1}, "rerank.label is 1, .* has 1 label; set it to 0 at most"),
        (lambda f: f, {}, "does not exist"),
    ],
)
def test_another_kind_of_model_is_refused(
    tmp_path: Path, save: Callable[[Path], Path], fields: dict[str, Any], message: str
) -> None:
    folder = save(tmp_path / "model")
    with pytest.raises(EncoderError, match=message) as refused:
        opened(folder, **fields)
    assert "\n" not in str(refused.value)


def test_a_score_that_is_not_finite_is_refused(tmp_path: Path) -> None:
    folder = save_cross_bert(tmp_path / "model")
    weights = load_file(folder / "model.safetensors")
    weights["classifier.bias"] *= np.nan
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(EncoderError, match="gives the score nan to question 'who was the"):
        scores_of(opened(folder))


@pytest.mark.parametrize("revision", [None, "main", "a" * 40])
def test_a_hub_model_is_pinned_to_its_commit(tmp_path: Path, hub: Path, revision: str | None) -> None:
    """All replicas of a service load what was there when it started, also those that start later."""
    model = save_cross_bert(tmp_path / "model")
    save_to_hub_cache(hub, "someone/cross", "a" * 40, model)
    config = RerankConfig(model="someone/cross", revision=revision, top=7)
    before, pinned = resolve_cross_encoder(config), pin_cross_encoder(config)
    assert pinned == config.model_copy(update={"model": f"someone/cross@{'a' * 40}"})
    newer = save_to_hub_cache(hub, "someone/cross", "b" * 40, model)  # main moves on
    edit_json(newer / "config.json", {"layer_norm_eps": 1e-6})
    moved = resolve_cross_encoder(RerankConfig(model="someone/cross"))
    assert moved.name == f"someone/cross@{'b' * 40}"
    again = resolve_cross_encoder(pinned)
    assert (again.name, again.reranker_id, again.tower.folder) == (before.name, before.reranker_id, before.tower.folder)
    assert moved.reranker_id != before.reranker_id


def test_a_folder_needs_no_pin(tmp_path: Path) -> None:
    config = RerankConfig(model=str(save_cross_bert(tmp_path / "model")))
    assert pin_cross_encoder(config) == config
