"""Questions in eight bits: the graph is BERT, its rounding is small, and other encoders compute without it."""

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dpr.encoder import int8_encoder
from dpr.encoder.compute import Compute
from dpr.encoder.int8_encoder import BATCH_TOKENS, Int8Encoder, NotHereError
from dpr.encoder.openvino_batches import OpenVinoBert
from dpr.encoder.openvino_bert import read_bert
from dpr.encoder.question_encoder import QuestionEncoder
from dpr.encoder.spec import resolve
from dpr.encoder.tokens import TokenBatch
from dpr.encoder.tower import TowerSpec
from dpr.recipe import EncoderConfig
from tests.encoder.models import TEXTS, save_bert
from tests.processors import Processors

pytest.importorskip("openvino")
pytestmark = pytest.mark.skipif(not int8_encoder._multiplies_int8(), reason="no products of eight bits")
SIZES: dict[str, Any] = {"hidden_size": 128, "intermediate_size": 256, "initializer_range": 0.1}
HERE = Compute(device="cpu", threads=2)


def tower_of(folder: Path, **config: Any) -> TowerSpec:
    return resolve(EncoderConfig(model=str(folder), **({"pooling": "mean", "normalize": True} | config))).question


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_bert(tmp_path_factory.mktemp("bert"), **SIZES)


@pytest.mark.parametrize(
    ("act", "pooling", "dimensions"), [("gelu", "mean", None), ("gelu_new", "cls", 100), ("gelu", "max", None)]
)
def test_the_graph_gives_the_vectors_of_plain_torch(
    tmp_path: Path, act: str, pooling: str, dimensions: int | None
) -> None:
    tower = tower_of(save_bert(tmp_path, hidden_act=act, **SIZES), pooling=pooling, dimensions=dimensions)
    plain = QuestionEncoder(tower, Compute("fp32", packing="never", device="cpu"))
    tokens = plain._tokenizer.questions([*TEXTS, "a", "river of the city"])
    bert = read_bert(tower.folder, tower.reference)
    assert bert is not None
    (found_ND,) = OpenVinoBert(tower, bert, 1, rounded=False).vectors([tokens])
    np.testing.assert_allclose(found_ND, plain.network.encode(tokens, np.float32), atol=2e-5)


def test_questions_are_encoded_in_eight_bits(folder: Path) -> None:
    encoder = QuestionEncoder(tower_of(folder), HERE)
    plain = QuestionEncoder(tower_of(folder), Compute("fp32", device="cpu"))
    assert encoder.choice.startswith("int8 by OpenVINO, because its vectors have a cosine of 0.99")
    assert "not in eight bits: precision, packing or device were requested" in plain.choice
    found_QD, expected_QD = encoder.encode(TEXTS), plain.encode(TEXTS)
    assert (found_QD * expected_QD).sum(axis=1).min() > int8_encoder.MIN_COSINE


def test_a_vector_does_not_depend_on_what_it_is_encoded_with(folder: Path) -> None:
    encoder = QuestionEncoder(tower_of(folder), HERE)
    questions = [" ".join(TEXTS[0].split()[: 1 + n % 5]) + " war" * (n % 11) for n in range(150)]
    together_QD = encoder.encode(questions)
    assert sum(map(len, questions)) > BATCH_TOKENS  # several batches
    for some in ([0], [7, 3], list(range(20, 60))):
        alone_QD = encoder.encode([questions[number] for number in some])
        np.testing.assert_array_equal(alone_QD, together_QD[some])


def test_a_question_has_the_same_vector_alone_and_beside_another(tmp_path: Path) -> None:
    encoder = Int8Encoder(tower_of(save_bert(tmp_path, num_attention_heads=4, num_hidden_layers=4, **SIZES)), HERE)
    for tokens in range(1, 80, 3):
        ids_T = np.arange(10, 10 + tokens, dtype=np.int32) % 30
        both = TokenBatch(np.tile(ids_T, 2), np.zeros(2 * tokens, np.uint8), np.array([0, tokens, 2 * tokens]))
        alone_1D = encoder.encode(both[:1], np.float32)
        np.testing.assert_array_equal(encoder.encode(both, np.float32), np.tile(alone_1D, (2, 1)))


def test_a_question_has_the_same_vector_by_one_thread_and_by_two(tmp_path: Path) -> None:
    tower = tower_of(save_bert(tmp_path, num_attention_heads=4, num_hidden_layers=4, **SIZES))
    bert = read_bert(tower.folder, tower.reference)
    assert bert is not None
    found = [OpenVinoBert(tower, bert, 2, rounded=True) for _ in range(2)]
    for each, idle in zip(found, (True, False), strict=True):
        each._idle_processors = Processors(idle=idle)
    for tokens in range(1, 80, 3):
        ids_T = np.arange(10, 10 + tokens, dtype=np.int32) % 30
        batch = TokenBatch(ids_T, ids_T.astype(np.uint8) * 0, np.array([0, tokens]))
        by_two, by_one = (each.vectors([batch])[0] for each in found)
        np.testing.assert_array_equal(by_two, by_one)


def test_several_threads_encode_at_once(folder: Path) -> None:
    encoder = QuestionEncoder(tower_of(folder), HERE)
    questions = [" ".join(TEXTS[0].split()[: 1 + n % 5]) + " war" * (n % 11) for n in range(300)]
    alone = [encoder.encode(questions[first : first + 75]) for first in range(0, 300, 75)]
    with ThreadPoolExecutor(4) as pool:
        for _ in range(5):
            beside = list(pool.map(lambda first: encoder.encode(questions[first : first + 75]), range(0, 300, 75)))
            np.testing.assert_array_equal(beside, alone)


def test_a_token_that_the_model_does_not_know_harms_no_later_question(folder: Path) -> None:
    encoder = Int8Encoder(tower_of(folder), HERE)
    ids_T = np.full(4 * BATCH_TOKENS, 5, np.int32)
    tokens = TokenBatch(ids_T, ids_T.astype(np.uint8) * 0, np.arange(0, len(ids_T) + 1, 8))
    expected_ND = encoder.encode(tokens)
    ids_T = ids_T.copy()
    ids_T[-1] = 10**6
    with pytest.raises(IndexError):
        encoder.encode(TokenBatch(ids_T, tokens.types_T, tokens.offsets))
    np.testing.assert_array_equal(encoder.encode(tokens), expected_ND)


def test_a_question_without_tokens_has_a_vector_of_zeros(folder: Path) -> None:
    encoder = Int8Encoder(tower_of(folder), HERE)
    tokens = QuestionEncoder(tower_of(folder), HERE)._tokenizer.questions(["river", "city"])
    without = type(tokens)(tokens.ids_T, tokens.types_T, np.array([0, 0, *tokens.offsets[1:]]))
    vectors_ND = encoder.encode(without)
    assert not vectors_ND[0].any()
    assert vectors_ND[1:].any(axis=1).all()


@pytest.mark.parametrize(
    ("config", "tower", "compute", "why"),
    [
        ({}, {}, Compute("bf16", device="cpu"), "were requested"),
        ({}, {}, Compute(packing="never", device="cpu"), "were requested"),
        ({}, {}, Compute(device="meta"), "were requested"),
        ({}, {"pooling": "weightedmean"}, HERE, "only the mean"),
        ({"hidden_size": 32, "intermediate_size": 64}, {}, HERE, "only BERT"),
        ({"hidden_act": "relu"}, {}, HERE, "only BERT"),
        ({"is_decoder": True}, {}, HERE, "only BERT"),
    ],
)
def test_who_cannot_be_encoded_so_is_told_why(
    tmp_path: Path, config: dict[str, Any], tower: dict[str, Any], compute: Compute, why: str
) -> None:
    folder = save_bert(tmp_path, **(SIZES | config))
    with pytest.raises(NotHereError, match=why):
        Int8Encoder(tower_of(folder, **tower), compute)


def test_without_such_products_or_the_library_torch_encodes(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(int8_encoder, "_multiplies_int8", lambda: False)
        assert "no products of eight bits" in QuestionEncoder(tower_of(folder), HERE).choice
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "openvino", None)
        assert "OpenVINO is not installed" in QuestionEncoder(tower_of(folder), HERE).choice


@pytest.mark.slow
def test_neither_pytorch_nor_telemetry_is_imported(folder: Path) -> None:
    tower = tower_of(folder)
    QuestionEncoder(tower, HERE)  # transformers reads the tokenizer once
    script = (
        "import sys\nfrom dpr.encoder.question_encoder import QuestionEncoder\nfrom dpr.encoder.spec import resolve\n"
        "from dpr.encoder.compute import Compute\nfrom dpr.recipe import EncoderConfig\n"
        f"spec = resolve(EncoderConfig(model={str(folder)!r}, pooling='mean', normalize=True))\n"
        "encoder = QuestionEncoder(spec.question, Compute(device='cpu'))\nencoder.warm_up()\n"
        "assert encoder.encode(['river']).any()\n"
        "print([name for name in ('torch', 'transformers', 'openvino_telemetry') if name in sys.modules])"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=environment, check=True)
    assert done.stdout.strip() == "[]"
