"""Every kind of encoder against sentence-transformers, by small random models of the same form."""

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from dpr.encoder.compute import Compute
from dpr.encoder.encode import TowerEncoder
from dpr.encoder.question_encoder import QuestionEncoder
from dpr.encoder.spec import EncoderSpec, resolve
from dpr.encoder.tokens import TowerTokenizer
from dpr.errors import EncoderError
from dpr.recipe import EncoderConfig
from tests.encoder.kinds import MIXERS, NETWORKS, save_kind, save_static
from tests.encoder.models import edit_json

sentence_transformers = pytest.importorskip("sentence_transformers")

QUESTIONS = ["who was the first king of the city", "Paris", "ocean " * 90, "中国水人 in the history of 日本 light"]
PASSAGES = [
    "The first king of the city.",
    "war",
    "Paris is a city; the river, the stone!",
    "ocean " * 100,
    "light a b c",
]
FP32 = Compute("fp32", threads=1)
DENSE = [(32, 48, {"activation_function": "torch.nn.modules.activation.Tanh"}), (48, 32, {"bias": False})]
PROMPTS = {"query": "the history: ", "document": "a city | "}


def unit(vectors_ND: Any) -> npt.NDArray[np.float64]:
    vectors_ND = np.asarray(vectors_ND, np.float64)
    return np.asarray(vectors_ND / np.linalg.norm(vectors_ND, axis=1, keepdims=True))


def assert_same(folder: Path, **fields: Any) -> EncoderSpec:
    """Compare the vectors of questions and passages, and the scores between them."""
    spec = resolve(EncoderConfig(model=str(folder), **fields))
    theirs = sentence_transformers.SentenceTransformer(
        str(folder), device="cpu", truncate_dim=fields.get("dimensions"), local_files_only=True
    )
    expected_QD, expected_ND = theirs.encode_query(QUESTIONS), theirs.encode_document(PASSAGES)
    found_QD = QuestionEncoder(spec.question, FP32).encode(QUESTIONS)
    tokens = TowerTokenizer(spec.passage).passages([""] * len(PASSAGES), PASSAGES)
    found_ND = TowerEncoder(spec.passage, FP32).encode(tokens, np.float32)
    assert found_ND.shape == expected_ND.shape == (len(PASSAGES), spec.dim)
    assert (unit(found_QD) * unit(expected_QD)).sum(1).min() >= 0.9999
    assert (unit(found_ND) * unit(expected_ND)).sum(1).min() >= 0.9999
    # vectors that are all alike would prove nothing
    assert (unit(expected_ND) @ unit(expected_ND).T).min() < 0.99
    np.testing.assert_allclose(
        found_QD @ found_ND.T, theirs.similarity(expected_QD, expected_ND).numpy(), rtol=1e-3, atol=1e-3
    )
    return spec


@pytest.mark.parametrize("network", NETWORKS)
def test_a_network_of_this_kind(tmp_path: Path, network: str) -> None:
    assert_same(save_kind(tmp_path, network))


@pytest.mark.parametrize(
    "pooling",
    ["cls", "max", "lasttoken", "weightedmean", "mean_sqrt_len_tokens", ["cls", "mean"], ["max", "lasttoken"]],
)
@pytest.mark.parametrize("include_prompt", [True, False])
def test_a_pooling_with_prompts(tmp_path: Path, pooling: Any, include_prompt: bool) -> None:
    spec = assert_same(save_kind(tmp_path, "bert", pooling=pooling, include_prompt=include_prompt, prompts=PROMPTS))
    assert spec.passage.prompt_pooled == include_prompt


@pytest.mark.parametrize("side", ["left", "right"])
def test_the_last_token_of_a_decoder_whatever_side_is_padded(tmp_path: Path, side: str) -> None:
    prompts = {"query": "Instruct: history\nQuery:", "document": ""}
    assert_same(save_kind(tmp_path, "qwen3", pooling="lasttoken", tokenizer={"padding_side": side}, prompts=prompts))


@pytest.mark.parametrize("looks_ahead", [False, True])
def test_a_decoder_with_code_of_its_own_must_say_whether_it_looks_ahead(tmp_path: Path, looks_ahead: bool) -> None:
    """gte-Qwen2 and stella do so by code that is not run here; config.json must state it."""
    code = {"auto_map": {"AutoModel": "modeling_qwen.Qwen2Model"}}
    silent = resolve(EncoderConfig(model=str(save_kind(tmp_path / "a", "qwen2", pooling="cls", config=code))))
    with pytest.raises(EncoderError, match=r'for a decoder \(modeling_qwen\.Qwen2Model\).* "is_causal": false into'):
        TowerEncoder(silent.passage, FP32)
    stated = save_kind(tmp_path / "b", "qwen2", pooling="cls", config={**code, "is_causal": not looks_ahead})
    spec = resolve(EncoderConfig(model=str(stated)))
    tokens = TowerTokenizer(spec.passage).passages([""] * 2, ["king one", "king two"])
    first_ND = TowerEncoder(spec.passage, FP32).encode(tokens, np.float32)
    # the first token of both is the same: it can differ only if it sees what follows
    assert (np.abs(first_ND[0] - first_ND[1]).max() > 1e-3) == looks_ahead
    if looks_ahead:
        assert_same(stated)


@pytest.mark.parametrize("network", MIXERS)
def test_a_network_that_padding_would_change_gives_what_a_text_gives_alone(tmp_path: Path, network: str) -> None:
    folder = save_kind(tmp_path, network)
    spec = resolve(EncoderConfig(model=str(folder)))
    theirs = sentence_transformers.SentenceTransformer(str(folder), device="cpu", local_files_only=True)
    encoder = TowerEncoder(spec.passage, FP32)
    assert "rows of equal length at a time, since padding changes vectors" in encoder.choice
    texts = [*PASSAGES, "war", "the first city of the king."]
    found_ND = encoder.encode(TowerTokenizer(spec.passage).passages([""] * len(texts), texts), np.float32)
    assert (unit(found_ND) * unit(theirs.encode(texts, batch_size=1))).sum(1).min() >= 0.9999


def test_a_network_that_fails_is_one_sentence(tmp_path: Path) -> None:
    folder = save_kind(tmp_path, "convbert", config={"conv_kernel_size": 4})  # keeps one token less
    with pytest.raises(
        EncoderError, match=r"its network \(ConvBertModel\) fails on a short text: RuntimeError: .*; name"
    ):
        TowerEncoder(resolve(EncoderConfig(model=str(folder))).passage, FP32)


@pytest.mark.parametrize(
    "head",
    [
        ["Normalize"],
        DENSE,
        [*DENSE, "Normalize"],
        ["Normalize", *DENSE, "Normalize"],
        ["LayerNorm", "Dropout", (32, 16, {"activation_function": "torch.nn.modules.linear.Identity"})],
        [(32, 24, {"use_residual": True, "activation_function": "torch.nn.modules.activation.GELU"})],
    ],
)
@pytest.mark.parametrize("similarity", ["cosine", "dot"])
def test_modules_after_the_pooling(tmp_path: Path, head: list[Any], similarity: str) -> None:
    spec = assert_same(save_kind(tmp_path, "bert", head=head, similarity_fn_name=similarity))
    assert spec.passage.normalize == (similarity == "cosine" or head[-1] == "Normalize")


@pytest.mark.parametrize("model2vec", [False, True])
def test_static_embeddings(tmp_path: Path, model2vec: bool) -> None:
    assert_same(save_static(tmp_path, ["Normalize"], model2vec=model2vec, prompts=PROMPTS))


@pytest.mark.parametrize("similarity", ["cosine", "dot"])
def test_fewer_dimensions(tmp_path: Path, similarity: str) -> None:
    folder = save_kind(tmp_path, "bert", head=["Normalize"], similarity_fn_name=similarity)
    whole = resolve(EncoderConfig(model=str(folder)))
    assert assert_same(folder, dimensions=20).encoder_id != whole.encoder_id
    edit_json(folder / "config_sentence_transformers.json", {"truncate_dim": 12})
    assert assert_same(folder).dim == 12
    with pytest.raises(EncoderError, match=r"encoder\.dimensions is 33, and model .* gives 32 components"):
        resolve(EncoderConfig(model=str(folder), dimensions=33))


def test_a_folder_in_the_layout_of_today(tmp_path: Path) -> None:
    folder = save_kind(tmp_path / "old", "bert", head=[*DENSE, "Normalize"])
    sentence_transformers.SentenceTransformer(str(folder), device="cpu").save(str(tmp_path / "new"))
    assert "sentence_transformers.models" not in (tmp_path / "new" / "modules.json").read_text()
    assert_same(tmp_path / "new")


@pytest.mark.parametrize("name", ["bert", "roberta", "distilbert", "camembert", "albert", "xlm-roberta", "xlnet"])
def test_every_name_of_the_settings(tmp_path: Path, name: str) -> None:
    settings = {"max_seq_length": 12, "do_lower_case": True}
    folder = save_kind(tmp_path, "bert", settings_name=f"sentence_{name}_config.json", settings=settings)
    assert assert_same(folder).passage.max_tokens == 12


@pytest.mark.parametrize("similarity", ["euclidean", "manhattan", "maxsim"])
def test_another_similarity_is_refused_unless_the_recipe_decides(tmp_path: Path, similarity: str) -> None:
    folder = save_kind(tmp_path, "bert", similarity_fn_name=similarity)
    with pytest.raises(EncoderError, match=f"compares vectors by {similarity} .* ranked by cosine or dot product only"):
        resolve(EncoderConfig(model=str(folder)))
    assert resolve(EncoderConfig(model=str(folder), normalize=True)).passage.normalize


def test_a_text_without_tokens_has_a_vector_of_zeros_among_others(tmp_path: Path) -> None:
    spec = resolve(EncoderConfig(model=str(save_static(tmp_path, ["Normalize"], model2vec=False))))
    tokens = TowerTokenizer(spec.passage).passages(["", "", ""], ["king", "", "war"])
    found_ND = TowerEncoder(spec.passage, FP32).encode(tokens, np.float32)
    np.testing.assert_allclose(np.linalg.norm(found_ND, axis=1), [1, 0, 1], atol=1e-6)
    with pytest.raises(EncoderError, match="gives a vector of zero for question 2 of 2"):
        QuestionEncoder(spec.question, FP32).encode(["king", ""])


def test_weights_of_a_dense_module_change_the_encoder(tmp_path: Path) -> None:
    ids = set()
    for name, head in {"one": DENSE, "two": [*DENSE[:1], (48, 32, {})], "three": [*DENSE, "Normalize"]}.items():
        ids.add(resolve(EncoderConfig(model=str(save_kind(tmp_path / name, "bert", head=head)))).encoder_id)
    assert len(ids) == 3


def test_a_dense_module_of_another_width_is_refused(tmp_path: Path) -> None:
    folder = save_kind(tmp_path, "bert", head=DENSE[1:])
    with pytest.raises(EncoderError, match=r"module Dense .* takes 48 components, and gets 32"):
        resolve(EncoderConfig(model=str(folder)))


def test_an_activation_from_elsewhere_is_refused(tmp_path: Path) -> None:
    folder = save_kind(tmp_path, "bert", head=[(32, 32, {"activation_function": "os.system"})])
    with pytest.raises(EncoderError, match=r"the activation os\.system"):
        resolve(EncoderConfig(model=str(folder)))
