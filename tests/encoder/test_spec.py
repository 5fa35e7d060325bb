"""What a spec reads from model folders, what changes its id, and what is stored of it."""

import hashlib
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from dpr.encoder.model_files import digest_files
from dpr.encoder.spec import encoder_id_of, resolve
from dpr.errors import EncoderError
from dpr.formats.manifest import EncoderDescription
from dpr.recipe import EncoderConfig
from dpr.store.digests import DigestMemory
from tests.encoder.models import (
    edit_json,
    save_mpnet,
    save_sentence_transformer,
    save_to_hub_cache,
    save_tokenizer,
)


def config(model: Path, **fields: Any) -> EncoderConfig:
    return EncoderConfig(**{"model": str(model), "pooling": "mean", **fields})


def encoder_id(model: Path, **fields: Any) -> str:
    return resolve(config(model, **fields)).encoder_id


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
def test_the_id_changes_with_what_changes_vectors(shared_bert: Path, fields: dict[str, Any]) -> None:
    assert encoder_id(shared_bert, **fields) != encoder_id(shared_bert)


@pytest.mark.parametrize(
    "fields", [{"precision": "bf16"}, {"tokens_per_batch": 4096}, {"packing": "never"}, {"normalize": False}]
)
def test_the_id_does_not_change_with_how_it_is_computed(shared_bert: Path, fields: dict[str, Any]) -> None:
    assert encoder_id(shared_bert, **fields) == encoder_id(shared_bert)


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


def test_a_description_is_stored_and_resolved_again(shared_bert: Path) -> None:
    fast = {"precision": "fp32", "tokens_per_batch": 4096, "packing": "never"}
    spec = resolve(config(shared_bert, question_prefix="ask: ", max_tokens=50, **fast))
    described = EncoderDescription.model_validate_json(spec.describe().to_bytes())
    assert described == spec.describe()
    assert (described.encoder_id, described.dim, described.question.prefix) == (spec.encoder_id, 32, "ask: ")
    assert described.encoder_id == encoder_id_of(described.passage, described.question)
    assert (described.config.precision, described.config.tokens_per_batch, described.config.packing) == (
        "fp32", None, "auto"
    )  # fmt: skip
    assert resolve(described.config).describe() == described
    assert (spec.passage.max_tokens, spec.passage.title_join) == (50, "space")


@pytest.mark.parametrize("revision", [None, "main", "a" * 40])
def test_a_hub_model_is_pinned_to_its_commit(shared_bert: Path, hub: Path, revision: str | None) -> None:
    save_to_hub_cache(hub, "someone/bert", "a" * 40, shared_bert)
    spec = resolve(EncoderConfig(model="someone/bert", revision=revision, pooling="cls"))
    assert spec.config.revision == spec.describe().config.revision == "a" * 40
    newer = save_to_hub_cache(hub, "someone/bert", "b" * 40, shared_bert)  # main moves on
    edit_json(newer / "config.json", {"layer_norm_eps": 1e-6})
    assert resolve(EncoderConfig(model="someone/bert", pooling="cls")).config.revision == "b" * 40
    assert resolve(EncoderConfig(model="someone/bert", pooling="cls")).encoder_id != spec.encoder_id
    assert resolve(spec.describe().config) == spec


def test_two_hub_models_are_pinned_one_by_one(dpr_pair: tuple[Path, Path], hub: Path) -> None:
    context, question = dpr_pair
    save_to_hub_cache(hub, "someone/context", "a" * 40, context)
    save_to_hub_cache(hub, "someone/question", "b" * 40, question)
    spec = resolve(EncoderConfig(model="someone/context", question_model="someone/question"))
    assert spec.config.revision is None
    assert (spec.config.model, spec.config.question_model) == (
        f"someone/context@{'a' * 40}", f"someone/question@{'b' * 40}"
    )  # fmt: skip
    again = resolve(spec.describe().config)
    assert (again.encoder_id, again.config) == (spec.encoder_id, spec.config)
    half_local = resolve(EncoderConfig(model=str(context), question_model="someone/question"))
    assert (half_local.config.question_model, half_local.config.revision) == ("someone/question", "b" * 40)


def test_the_digest_is_over_names_sizes_and_digests_of_files(bert: Path) -> None:
    (bert / "vocab.txt").unlink(missing_ok=True)
    names = ["config.json", "tokenizer.json", "tokenizer_config.json", "model.safetensors"]
    lines = [
        f"{name} {(bert / name).stat().st_size} {hashlib.sha256((bert / name).read_bytes()).hexdigest()}\n"
        for name in names
    ]
    expected = hashlib.sha256("".join(lines).encode()).hexdigest()
    assert digest_files(bert, ["model.safetensors"]) == expected


def test_weights_are_hashed_once_until_they_change(bert: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hash_file, hashed = DigestMemory._hash, []

    def remember(self: DigestMemory, path: Path) -> str:
        hashed.append(path.name)
        return hash_file(self, path)

    monkeypatch.setattr(DigestMemory, "_hash", remember)
    for path in bert.iterdir():
        os.utime(path, (1e9, 1e9))
    first = encoder_id(bert)
    assert "model.safetensors" in hashed
    hashed.clear()
    assert encoder_id(bert) == first
    assert hashed == []
    one_weight(bert)
    assert encoder_id(bert) != first
    assert hashed == ["model.safetensors"]


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


def test_a_dpr_pair_is_read_by_its_architectures(dpr_pair: tuple[Path, Path]) -> None:
    context, question = dpr_pair
    spec = resolve(EncoderConfig(model=str(context), question_model=str(question)))
    for tower in (spec.passage, spec.question):
        assert (tower.pooling, tower.normalize, tower.title_join, tower.max_tokens) == ("cls", False, "pair", 256)
    assert spec.dim == 24
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


def test_prompts_become_prefixes_unless_the_recipe_states_others(tmp_path: Path) -> None:
    folder = save_sentence_transformer(tmp_path, prompts={"query": "ask: ", "passage": "read: ", "document": ""})
    spec = resolve(EncoderConfig(model=str(folder)))
    assert (spec.passage.prefix, spec.question.prefix) == ("read: ", "ask: ")
    spec = resolve(EncoderConfig(model=str(folder), question_prefix="", passage_prefix="p ", pooling="max"))
    assert (spec.passage.prefix, spec.question.prefix, spec.passage.pooling) == ("p ", "", "max")


def test_mpnet_begins_at_its_third_position_whatever_its_padding_is_said_to_be(tmp_path: Path) -> None:
    for number, padding in enumerate((0, 1)):
        folder = save_mpnet(tmp_path / str(number), pad_token_id=padding)
        assert resolve(config(folder)).passage.max_tokens == 298


def test_roberta_has_fewer_positions_than_its_table(bert: Path) -> None:
    edit_json(bert / "config.json", {"model_type": "roberta", "pad_token_id": 1})
    assert resolve(config(bert)).passage.max_tokens == 298
    with pytest.raises(EncoderError, match=r"max_tokens is 299, and model .* has positions for 298 tokens"):
        resolve(config(bert, max_tokens=299))
