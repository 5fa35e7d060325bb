"""What a spec reads from model folders, what changes its id, and every model that is refused."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from dpr.encoder.spec import resolve
from dpr.errors import EncoderError
from dpr.recipe import EncoderConfig
from tests.encoder.models import edit_json, save_bert, save_dpr, save_sentence_transformer, save_tokenizer


def config(model: Path, **fields: Any) -> EncoderConfig:
    return EncoderConfig(**{"model": str(model), "pooling": "mean", **fields})


def encoder_id(model: Path, **fields: Any) -> str:
    return resolve(config(model, **fields)).encoder_id


@pytest.fixture
def bert(tmp_path: Path) -> Path:
    return save_bert(tmp_path / "bert")


@pytest.mark.parametrize(
    "fields",
    [
        {"pooling": "cls"},
        {"normalize": True},
        {"max_tokens": 100},
        {"passage_prefix": "passage: "},
        {"question_prefix": "query: "},
        {"title_join": "pair"},
    ],
)
def test_the_id_changes_with_what_changes_vectors(bert: Path, fields: dict[str, Any]) -> None:
    assert encoder_id(bert, **fields) != encoder_id(bert)


@pytest.mark.parametrize(
    "fields", [{"precision": "bf16"}, {"tokens_per_batch": 4096}, {"packing": "never"}, {"normalize": False}]
)
def test_the_id_does_not_change_with_how_it_is_computed(bert: Path, fields: dict[str, Any]) -> None:
    assert encoder_id(bert, **fields) == encoder_id(bert)


def one_weight(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    weights["embeddings.word_embeddings.weight"][9, 3] += 1e-3
    save_file(weights, folder / "model.safetensors", {"format": "pt"})


@pytest.mark.parametrize(
    "change",
    [
        one_weight,
        lambda folder: edit_json(folder / "config.json", {"layer_norm_eps": 1e-6}),
        lambda folder: edit_json(folder / "tokenizer_config.json", {"do_lower_case": False}),
        lambda folder: save_tokenizer(folder, do_lower_case=False),
    ],
)
def test_the_id_changes_with_the_files_that_are_used(bert: Path, change: Callable[[Path], object]) -> None:
    before = encoder_id(bert)
    change(bert)
    assert encoder_id(bert) != before


def test_the_id_does_not_change_when_the_folder_moves_or_gains_other_files(bert: Path, tmp_path: Path) -> None:
    before = encoder_id(bert)
    moved = tmp_path / "elsewhere" / "model"
    shutil.copytree(bert, moved)
    (moved / "README.md").write_text("about")
    (moved / "pytorch_model.bin").write_bytes(b"not opened")
    assert encoder_id(moved) == before


def test_a_description_is_json_resolves_again_and_names_no_folder(bert: Path) -> None:
    spec = resolve(config(bert, question_prefix="ask: ", max_tokens=50, precision="fp32"))
    described = json.loads(json.dumps(spec.describe()))
    assert described["encoder_id"] == spec.encoder_id
    assert described["dim"] == 32
    assert described["question"]["prefix"] == "ask: "
    assert "folder" not in described["passage"]
    again = resolve(EncoderConfig(**described["config"]))
    assert again.describe() == described
    assert (spec.passage.max_tokens, spec.passage.title_join) == (50, "space")


def test_sharded_weights_count_whole(bert: Path) -> None:
    weights = load_file(bert / "model.safetensors")
    names = sorted(weights)
    shards = {"model-1.safetensors": names[::2], "model-2.safetensors": names[1::2]}
    (bert / "model.safetensors").unlink()
    for shard, inside in shards.items():
        save_file({name: weights[name] for name in inside}, bert / shard, {"format": "pt"})
    weight_map = {name: shard for shard, inside in shards.items() for name in inside}
    edit_json(bert / "model.safetensors.index.json", {"metadata": {}, "weight_map": weight_map})
    before = encoder_id(bert)
    weights[names[1]] += 1
    save_file({name: weights[name] for name in names[1::2]}, bert / "model-2.safetensors", {"format": "pt"})
    assert encoder_id(bert) != before
    (bert / "model-2.safetensors").unlink()
    with pytest.raises(EncoderError, match=r"lacks the weight file model-2\.safetensors"):
        encoder_id(bert)


def test_a_dpr_pair_is_read_by_its_architectures(tmp_path: Path) -> None:
    context, question = save_dpr(tmp_path, projection_dim=16)
    spec = resolve(EncoderConfig(model=str(context), question_model=str(question)))
    for tower in (spec.passage, spec.question):
        assert (tower.pooling, tower.normalize, tower.title_join, tower.max_tokens) == ("cls", False, "pair", 256)
    assert spec.dim == 16
    assert spec.passage.digest != spec.question.digest


@pytest.mark.parametrize(
    ("pooling", "read"),
    [
        ({"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}, "cls"),
        ({"pooling_mode_max_tokens": True}, "max"),
        ({"pooling_mode": "cls"}, "cls"),
        ({"pooling_mode": ["mean"]}, "mean"),
    ],
)
def test_pooling_is_read_in_all_spellings(tmp_path: Path, pooling: dict[str, Any], read: str) -> None:
    folder = save_sentence_transformer(tmp_path, pooling=pooling, normalize=False)
    spec = resolve(EncoderConfig(model=str(folder)))
    assert (spec.passage.pooling, spec.passage.normalize) == (read, False)


@pytest.mark.parametrize(
    ("settings", "limits"),
    [
        ({}, (64, 64)),
        ({"max_seq_length": None}, (300, 300)),  # as many as there are positions
        ({"max_seq_length": 400}, (300, 300)),
        ({"tokenizer_args": {"model_max_length": 40}}, (40, 40)),
        ({"processor_kwargs": {"model_max_length": 41}}, (41, 41)),
        ({"query_length": 16, "document_length": 90}, (90, 16)),
    ],
)
def test_token_limits_are_read_in_all_spellings(
    tmp_path: Path, settings: dict[str, Any], limits: tuple[int, int]
) -> None:
    spec = resolve(EncoderConfig(model=str(save_sentence_transformer(tmp_path, **settings))))
    assert (spec.passage.max_tokens, spec.question.max_tokens) == limits


def test_prompts_become_prefixes_unless_the_recipe_says_otherwise(tmp_path: Path) -> None:
    folder = save_sentence_transformer(tmp_path, prompts={"query": "ask: ", "passage": "read: ", "document": ""})
    spec = resolve(EncoderConfig(model=str(folder)))
    assert (spec.passage.prefix, spec.question.prefix) == ("read: ", "ask: ")
    spec = resolve(EncoderConfig(model=str(folder), question_prefix="", passage_prefix="p ", pooling="max"))
    assert (spec.passage.prefix, spec.question.prefix, spec.passage.pooling) == ("p ", "", "max")


def test_roberta_has_fewer_positions_than_its_table(bert: Path) -> None:
    edit_json(bert / "config.json", {"model_type": "roberta", "pad_token_id": 1})
    assert resolve(config(bert)).passage.max_tokens == 298
    with pytest.raises(EncoderError, match=r"max_tokens is 299, and model .* has positions for 298 tokens"):
        resolve(config(bert, max_tokens=299))


def no_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()


def only_pickles(folder: Path) -> None:
    no_weights(folder)
    (folder / "pytorch_model.bin").write_bytes(b"\x80\x04")


def too_many_words(folder: Path) -> None:
    edit_json(folder / "config.json", {"vocab_size": 40})


def too_many_words_in_vocab_txt(folder: Path) -> None:
    too_many_words(folder)
    (folder / "tokenizer.json").unlink()


def no_tokenizer(folder: Path) -> None:
    (folder / "tokenizer.json").unlink()
    (folder / "vocab.txt").unlink()


@pytest.mark.parametrize(
    ("change", "fields", "said"),
    [
        (no_weights, {}, "has no weights in"),
        (only_pickles, {}, "only as a pickle .*pytorch_model.bin.* never opened"),
        (too_many_words, {}, "gives token ids up to 1[0-9]+, and its embedding table has 40 rows"),
        (too_many_words_in_vocab_txt, {}, "gives token ids up to 1[0-9]+, and its embedding table has 40 rows"),
        (no_tokenizer, {}, "has no tokenizer in"),
        (lambda f: (f / "config.json").unlink(), {}, "has no readable config.json"),
        (lambda f: (f / "config.json").write_text("{"), {}, "config.json is not JSON"),
        (lambda f: (f / "config.json").write_text("[]"), {}, "config.json holds a list"),
        (lambda f: (f / "tokenizer.json").write_text("{}"), {}, "tokenizer.json is no tokenizer"),
        (lambda f: edit_json(f / "config.json", {"is_encoder_decoder": True}), {}, "is the encoder-decoder BertModel"),
        (lambda _: None, {"pooling": None}, "set encoder.pooling to cls, mean or max"),
        (lambda _: None, {"max_tokens": 301}, "has positions for 300 tokens; set it to 300 at most"),
    ],
)
def test_a_model_that_cannot_be_used_is_one_sentence(
    bert: Path, change: Callable[[Path], object], fields: dict[str, Any], said: str
) -> None:
    change(bert)
    with pytest.raises(EncoderError, match=said) as raised:
        resolve(config(bert, **fields))
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"pooling": {"pooling_mode": "lasttoken"}}, "pools by lasttoken; one of cls, mean, max is supported"),
        ({"pooling": {"pooling_mode_cls_token": True, "pooling_mode_max_tokens": True}}, "pools by cls and max"),
        ({"transformer_task": "fill-mask"}, "is made for fill-mask"),
        ({"prompts": {"query": "q "}, "pooling": {"include_prompt": False}}, "leaves its prompt out of pooling"),
    ],
)
def test_a_sentence_transformer_of_another_make_is_refused(tmp_path: Path, settings: dict[str, Any], said: str) -> None:
    folder = save_sentence_transformer(tmp_path, **settings)
    with pytest.raises(EncoderError, match=said):
        resolve(EncoderConfig(model=str(folder)))


@pytest.mark.parametrize(
    ("modules", "said"),
    [
        (["Transformer", "Pooling", "Dense"], "is made of the modules Transformer, Pooling, Dense; only"),
        (["Transformer", "Normalize", "Pooling"], "only Transformer, Pooling and, after them, Normalize"),
        (["Transformer"], "is made of the modules Transformer; only"),
    ],
)
def test_other_modules_are_refused(tmp_path: Path, modules: list[str], said: str) -> None:
    folder = save_sentence_transformer(tmp_path)
    edit_json(
        folder / "modules.json", [{"type": f"sentence_transformers.models.{name}", "path": ""} for name in modules]
    )
    with pytest.raises(EncoderError, match=said):
        resolve(EncoderConfig(model=str(folder)))


def test_modules_stay_inside_the_folder(tmp_path: Path) -> None:
    folder = save_sentence_transformer(tmp_path / "model")
    edit_json(folder / "modules.json", [{"type": "a.Transformer", "path": ""}, {"type": "a.Pooling", "path": "../x"}])
    with pytest.raises(EncoderError, match=r"puts Pooling at '\.\./x', outside"):
        resolve(EncoderConfig(model=str(folder)))


@pytest.mark.parametrize(
    ("model", "question_model", "said"),
    [
        ("context", None, "encoder.model .*context is a DPRContextEncoder, which encodes passages only"),
        ("question", None, "encoder.model .*question is a DPRQuestionEncoder, which encodes questions only"),
        ("question", "context", "encoder.model .*question is a DPRQuestionEncoder"),
        ("context", "context", "encoder.question_model .*context is a DPRContextEncoder"),
        ("context", "narrow/question", "gives 32 dimensions and the question tower .* gives 16"),
    ],
)
def test_dpr_towers_must_belong_together(tmp_path: Path, model: str, question_model: str | None, said: str) -> None:
    save_dpr(tmp_path)
    save_dpr(tmp_path / "narrow", hidden_size=16)
    other = question_model and str(tmp_path / question_model)
    with pytest.raises(EncoderError, match=said):
        resolve(EncoderConfig(model=str(tmp_path / model), question_model=other))
