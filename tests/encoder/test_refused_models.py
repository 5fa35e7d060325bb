"""Every model that is refused, each with one sentence."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from dpr.encoder.network import load_network
from dpr.encoder.spec import resolve
from dpr.errors import EncoderError
from dpr.recipe import EncoderConfig
from tests.encoder.models import edit_json, save_dpr, save_sentence_transformer


def config(model: Path, **fields: Any) -> EncoderConfig:
    return EncoderConfig(**{"model": str(model), "pooling": "mean", **fields})


def no_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()


def only_pickles(folder: Path) -> None:
    no_weights(folder)
    (folder / "pytorch_model.bin").write_bytes(b"\x80\x04")


def only_an_export(folder: Path) -> None:
    no_weights(folder)
    (folder / "onnx").mkdir()
    (folder / "onnx" / "model.onnx").write_bytes(b"")


def weights_of_another_network(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    renamed = {name.replace("encoder.layer.1", "encoder.block.1"): value for name, value in weights.items()}
    save_file(renamed, folder / "model.safetensors", {"format": "pt"})


def too_many_words(folder: Path) -> None:
    edit_json(folder / "config.json", {"vocab_size": 40})


def too_many_words_in_vocab_txt(folder: Path) -> None:
    too_many_words(folder)
    (folder / "tokenizer.json").unlink()


def no_tokenizer(folder: Path) -> None:
    (folder / "tokenizer.json").unlink()
    (folder / "vocab.txt").unlink()


@pytest.mark.parametrize(
    ("change", "fields", "message"),
    [
        (no_weights, {}, "has no weights in"),
        (only_pickles, {}, "only as a pickle .*pytorch_model.bin.* never opened"),
        (only_an_export, {}, r"only as an export for another engine \(model.onnx\)"),
        (too_many_words, {}, "gives token ids up to 1[0-9]+, and its embedding table has 40 rows"),
        (too_many_words_in_vocab_txt, {}, "gives token ids up to 1[0-9]+, and its embedding table has 40 rows"),
        (no_tokenizer, {}, "has no tokenizer in"),
        (lambda f: (f / "config.json").unlink(), {}, "has no readable config.json"),
        (lambda f: (f / "config.json").write_text("{"), {}, "config.json is not JSON"),
        (lambda f: (f / "config.json").write_text("[]"), {}, "config.json holds a list; it must hold a JSON object"),
        (lambda f: (f / "config.json").write_text("null"), {}, "config.json holds null; it must hold a JSON object"),
        (lambda f: (f / "tokenizer.json").write_text("{}"), {}, "tokenizer.json is not a tokenizer"),
        (lambda f: edit_json(f / "config.json", {"is_encoder_decoder": True}), {}, "is the encoder-decoder BertModel"),
        (
            lambda _: None,
            {"pooling": None},
            "set encoder.pooling to what its maker says, one of cls, mean",
        ),
        (lambda _: None, {"max_tokens": 301}, "has positions for 300 tokens; set it to 300 at most"),
    ],
)
def test_a_model_that_cannot_be_used_is_one_sentence(
    bert: Path, change: Callable[[Path], object], fields: dict[str, Any], message: str
) -> None:
    change(bert)
    with pytest.raises(EncoderError, match=message) as raised:
        resolve(config(bert, **fields))
    assert "\n" not in str(raised.value)


def test_weights_of_another_network_are_told_as_such(bert: Path) -> None:
    weights_of_another_network(bert)
    message = "lacks 16 of the weights that a BertModel needs, e.g. encoder.layer.1.* has others, e.g. encoder.block.1"
    with pytest.raises(EncoderError, match=message):
        load_network(resolve(config(bert)).passage)


def test_a_type_that_transformers_does_not_know_is_refused(bert: Path) -> None:
    edit_json(bert / "config.json", {"model_type": "new", "auto_map": {"AutoModel": "modeling.NewModel"}})
    with pytest.raises(EncoderError, match=r"'new', which transformers does not know, and code .* is never run"):
        load_network(resolve(config(bert)).passage)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"pooling": {"pooling_mode": "attention"}}, "pools by attention; cls, mean, max, lasttoken"),
        ({"transformer_task": "fill-mask"}, "is made for fill-mask"),
    ],
)
def test_an_unsupported_sentence_transformer_is_refused(tmp_path: Path, settings: dict[str, Any], message: str) -> None:
    folder = save_sentence_transformer(tmp_path, **settings)
    with pytest.raises(EncoderError, match=message):
        resolve(EncoderConfig(model=str(folder)))


@pytest.mark.parametrize(
    ("modules", "message"),
    [
        (["Transformer", "Pooling", "LSTM"], "is made of the modules Transformer, Pooling, LSTM; only"),
        (["Transformer", "Normalize", "Pooling"], "only Transformer and Pooling, or StaticEmbedding, followed by"),
        (["Transformer"], "is made of the modules Transformer; only"),
    ],
)
def test_other_modules_are_refused(tmp_path: Path, modules: list[str], message: str) -> None:
    folder = save_sentence_transformer(tmp_path)
    edit_json(
        folder / "modules.json", [{"type": f"sentence_transformers.models.{name}", "path": ""} for name in modules]
    )
    with pytest.raises(EncoderError, match=message):
        resolve(EncoderConfig(model=str(folder)))


def test_modules_stay_inside_the_folder(tmp_path: Path) -> None:
    folder = save_sentence_transformer(tmp_path / "model")
    edit_json(folder / "modules.json", [{"type": "a.Transformer", "path": ""}, {"type": "a.Pooling", "path": "../x"}])
    with pytest.raises(EncoderError, match=r"puts Pooling at '\.\./x', outside"):
        resolve(EncoderConfig(model=str(folder)))


@pytest.mark.parametrize(
    ("model", "question_model", "message"),
    [
        ("context", None, "encoder.model .*context is a DPRContextEncoder, which encodes passages only"),
        ("question", None, "encoder.model .*question is a DPRQuestionEncoder, which encodes questions only"),
        ("question", "context", "encoder.model .*question is a DPRQuestionEncoder"),
        ("context", "context", "encoder.question_model .*context is a DPRContextEncoder"),
        ("context", "narrow/question", "gives 32 dimensions and the question tower .* gives 16"),
    ],
)
def test_dpr_towers_must_belong_together(tmp_path: Path, model: str, question_model: str | None, message: str) -> None:
    save_dpr(tmp_path)
    save_dpr(tmp_path / "narrow", hidden_size=16)
    other = question_model and str(tmp_path / question_model)
    with pytest.raises(EncoderError, match=message):
        resolve(EncoderConfig(model=str(tmp_path / model), question_model=other))
