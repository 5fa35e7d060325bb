"""The packed forward pass against transformers' own, its kernels against plain PyTorch, and running out of memory."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import (
    BertConfig,
    BertModel,
    CamembertConfig,
    CamembertModel,
    DistilBertConfig,
    DistilBertModel,
    RobertaConfig,
    RobertaModel,
)

from dpr.encoder import packed_cpu
from dpr.encoder.encode import Compute, TowerEncoder
from dpr.encoder.memory import WithinMemory
from dpr.encoder.network import load_network
from dpr.encoder.packed import Entry, Linear, PackedBert, Tables, supports
from dpr.encoder.packed_cpu import CpuOps
from dpr.encoder.packed_forward import PackedForward, default_ops, pack
from dpr.encoder.packed_torch import TorchOps
from dpr.encoder.padded import PaddedForward
from dpr.encoder.precision import multiplies_bf16
from dpr.encoder.spec import resolve
from dpr.encoder.tokens import TokenBatch
from dpr.errors import EncoderError
from dpr.recipe import EncoderConfig
from tests.encoder.models import SIZES as SMALL
from tests.encoder.models import save_bert, save_dpr

CPU = torch.device("cpu")
HEADS = {"num_attention_heads": 2}
HEADS_OF_64 = {"num_attention_heads": 6, "intermediate_size": 1536}
SIZES = {**SMALL, **HEADS}
LENGTHS = [5, 100, 64, 65, 2, 128, 3, 256, 17]
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")


def made_up(lengths: list[int], vocabulary: int = SIZES["vocab_size"]) -> TokenBatch:
    rng, count = np.random.default_rng(1), sum(lengths)
    ids_T = rng.integers(2, vocabulary, count, dtype=np.int32)
    return TokenBatch(ids_T, rng.integers(0, 2, count, dtype=np.uint8), np.cumsum([0, *lengths], dtype=np.int64))


def randomised(body: Any) -> Any:
    """Biases and normalisations too: fresh ones are zeros and ones, and what ignored them would pass."""
    torch.manual_seed(5)
    for name, weight in body.named_parameters():
        if weight.ndim == 1:
            weight.data = float("LayerNorm.weight" in name) + 0.2 * torch.randn_like(weight)
    return body.eval()


def tables_of(body: Any, device: torch.device) -> Tables:
    class Keeping(TorchOps):
        def entry(self, tables: Tables, exact: Linear, prepared: Linear, dtype: torch.dtype) -> Entry:
            kept.append(tables)
            return super().entry(tables, exact, prepared, dtype)

    kept: list[Tables] = []
    PackedBert(body, Keeping(), torch.bfloat16, device)
    return kept[0]


@pytest.mark.parametrize("act", ["gelu", "relu"])
@pytest.mark.parametrize(
    ("config", "model"),
    [(BertConfig, BertModel), (RobertaConfig, RobertaModel), (CamembertConfig, CamembertModel)],
)
def test_packed_token_vectors_are_those_of_transformers(config: Any, model: Any, act: str) -> None:
    sizes = {**SIZES, "pad_token_id": 1, "type_vocab_size": 2, "hidden_act": act}
    body = randomised(model(config(**sizes), add_pooling_layer=False))
    assert supports(body)
    tokens = made_up(LENGTHS)
    packed = pack(tokens, CPU)
    with torch.inference_mode():
        alone = []
        for first, last in zip(tokens.offsets[:-1], tokens.offsets[1:], strict=True):
            ids, types = (torch.from_numpy(x[None, first:last]).long() for x in (tokens.ids_T, tokens.types_T))
            alone.append(body(input_ids=ids, token_type_ids=types).last_hidden_state[0])
        bert = PackedBert(body, TorchOps(), torch.float32, CPU)
        torch.testing.assert_close(bert.hidden(packed), torch.cat(alone), atol=2e-5, rtol=1e-4)
        torch.testing.assert_close(bert.first(packed), torch.stack([x[0] for x in alone]), atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("room", [2**28, 0])
@pytest.mark.parametrize(
    ("config", "model"),
    [(BertConfig, BertModel), (RobertaConfig, RobertaModel), (CamembertConfig, CamembertModel)],
)
def test_what_enters_the_first_layer_on_a_cpu_is_its_embedding_and_its_product(
    monkeypatch: pytest.MonkeyPatch, config: Any, model: Any, room: int
) -> None:
    """Whether the product is looked up or, for want of room, computed."""
    monkeypatch.setattr(packed_cpu, "MOST_TABLE", room)
    monkeypatch.setattr(CpuOps, "prepared", TorchOps.prepared)  # in float32 on any processor
    monkeypatch.setattr(CpuOps, "project", TorchOps.project)
    body = randomised(model(config(**SIZES, pad_token_id=1, type_vocab_size=2), add_pooling_layer=False))
    tokens, attention = made_up([5, 30, 2, 64]), body.encoder.layer[0].attention.self
    with torch.inference_mode():
        x_TH, qkv_TJ = PackedBert(body, CpuOps(), torch.float32, CPU)._enter(pack(tokens, CPU))
        for first, last in zip(tokens.offsets[:-1], tokens.offsets[1:], strict=True):
            ids, types = (torch.from_numpy(x[None, first:last]).long() for x in (tokens.ids_T, tokens.types_T))
            expected_TH = body.embeddings(input_ids=ids, token_type_ids=types)[0]
            expected_TJ = torch.cat(
                [each(expected_TH) for each in (attention.query, attention.key, attention.value)], 1
            )
            torch.testing.assert_close(x_TH[first:last], expected_TH, atol=2e-5, rtol=1e-4)
            torch.testing.assert_close(qkv_TJ[first:last], expected_TJ, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("pooling", ["cls", "mean", "max"])
def test_packed_vectors_are_those_of_padded_batches(tmp_path: Path, pooling: Any, normalize: bool) -> None:
    tower = resolve(
        EncoderConfig(model=str(save_bert(tmp_path, **HEADS)), pooling=pooling, normalize=normalize)
    ).passage
    network, tokens = load_network(tower), made_up(LENGTHS)
    with torch.inference_mode():
        expected_ND = PaddedForward(network, tower, CPU)(tokens)
    found_ND = PackedForward(network, tower, CPU, torch.float32)(tokens)
    torch.testing.assert_close(found_ND, expected_ND, atol=2e-5, rtol=1e-4)


def test_a_projection_after_pooling_is_kept(tmp_path: Path) -> None:
    context, question = save_dpr(tmp_path, projection_dim=24, **HEADS)
    tower = resolve(EncoderConfig(model=str(context), question_model=str(question))).passage
    network, tokens = load_network(tower), made_up(LENGTHS)
    assert supports(network.body)
    with torch.inference_mode():
        expected_ND = PaddedForward(network, tower, CPU)(tokens)
    found_ND = PackedForward(network, tower, CPU, torch.float32)(tokens)
    torch.testing.assert_close(found_ND, expected_ND, atol=2e-5, rtol=1e-4)


def test_networks_of_another_build_are_not_taken_for_bert() -> None:
    assert not supports(DistilBertModel(DistilBertConfig(dim=32, hidden_dim=64, n_layers=1, n_heads=4)))
    sizes = {**SIZES, "num_hidden_layers": 1}
    assert not supports(BertModel(BertConfig(**sizes, hidden_act="silu"), add_pooling_layer=False))
    assert not supports(BertModel(BertConfig(**sizes, is_decoder=True), add_pooling_layer=False))
    assert not supports(BertModel(BertConfig(**{**sizes, "num_attention_heads": 4}), add_pooling_layer=False))


@given(lengths=st.lists(st.integers(1, 60), max_size=40), tokens=st.integers(1, 200))
def test_batches_hold_every_row_once_within_the_budget_and_are_full(lengths: list[int], tokens: int) -> None:
    lengths_N = np.array(lengths, np.int64)
    batches = PackedForward.batches(lengths_N, tokens)
    assert sorted(row for batch in batches for row in batch) == list(range(len(lengths)))
    sums = [int(lengths_N[batch].sum()) for batch in batches]
    for batch, total, following in zip(batches, sums, [*batches, None][1:], strict=True):
        assert total <= tokens or len(batch) == 1
        assert following is None or total + lengths_N[following[0]] > tokens
    flat = lengths_N[np.concatenate(batches)] if batches else lengths_N
    assert (np.diff(flat) <= 0).all()


class LittleMemory:
    """Token sums as vectors; like a device, refuses batches over its size."""

    def __init__(self, most_tokens: int) -> None:
        self._most_tokens = most_tokens
        self.refused: list[int] = []

    def __call__(self, tokens: TokenBatch) -> torch.Tensor:
        if len(tokens.ids_T) > self._most_tokens:
            self.refused.append(len(tokens.ids_T))
            raise torch.OutOfMemoryError("tried to allocate too much")
        bounds = zip(tokens.offsets[:-1], tokens.offsets[1:], strict=True)
        return torch.tensor([[float(tokens.ids_T[first:last].sum())] for first, last in bounds])

    def batches(self, lengths_N: npt.NDArray[np.int64], tokens: int) -> list[npt.NDArray[np.int64]]:
        return PackedForward.batches(lengths_N, tokens)


def test_out_of_memory_halves_batches_says_so_and_gives_the_same_vectors(caplog: pytest.LogCaptureFixture) -> None:
    tokens, device = made_up([20] * 32), LittleMemory(200)
    expected_ND = LittleMemory(10_000)(tokens)
    forward = WithinMemory(device)
    torch.testing.assert_close(forward(tokens), expected_ND)
    assert device.refused == [640, 320]
    assert [record.args for record in caplog.records] == [(320,), (160,)]
    assert forward.said == "out of memory, so at most 160 tokens a batch"
    torch.testing.assert_close(forward(tokens), expected_ND)
    assert device.refused == [640, 320]  # learnt


def test_a_row_that_does_not_fit_alone_is_an_error() -> None:
    with pytest.raises(EncoderError, match="a passage of 50 tokens does not fit"):
        WithinMemory(LittleMemory(30))(made_up([20, 50]))


@pytest.mark.skipif(not multiplies_bf16(CPU), reason="this processor has no bf16 products")
@pytest.mark.parametrize("act", ["gelu", "gelu_new", "relu"])
@pytest.mark.parametrize("pooling", ["cls", "mean", "max"])
def test_packed_bf16_on_a_cpu_keeps_the_vectors(tmp_path: Path, pooling: Any, act: str) -> None:
    sizes = {"hidden_size": 384, "num_attention_heads": 12, "intermediate_size": 1536, "initializer_range": 0.05}
    folder = save_bert(tmp_path, hidden_act=act, **sizes)
    tower = resolve(EncoderConfig(model=str(folder), pooling=pooling)).passage
    network, tokens = load_network(tower), made_up([*LENGTHS, 17, 17, 17, 5])
    randomised(network.body)
    with torch.inference_mode():
        expected_ND = PaddedForward(network, tower, CPU)(tokens)
    found_ND = PackedForward(network, tower, CPU)(tokens)
    assert torch.cosine_similarity(found_ND, expected_ND).min() > 0.999
    wrong_ND = PackedForward(network, tower, CPU)(tokens.select(np.arange(len(tokens))[::-1].copy()))
    assert torch.cosine_similarity(wrong_ND, expected_ND).min() < 0.99


@pytest.mark.skipif(not multiplies_bf16(CPU), reason="this processor has no bf16 products")
@pytest.mark.parametrize(("scale", "alike", "values"), [(100.0, False, 1.0), (-100.0, True, 1.0), (14.0, False, 1e6)])
def test_attention_on_a_cpu_bears_what_lies_beyond_the_range_of_exponentials(
    scale: float, alike: bool, values: float
) -> None:
    """Scores of 566 for the token itself and about 0 for others, or of -566 for all, beside an ordinary sequence; or of
    79 with values so large that their sum, weighted by exponentials of these, is not a number that bf16 has."""
    heads, size, lengths = 2, 64, [20, 20, 7]
    generator = torch.Generator().manual_seed(3)
    qkv_TJ = torch.randn(sum(lengths), 3 * size, generator=generator)
    signs = torch.ones(20, size) if alike else qkv_TJ[:20, :size].sign()
    qkv_TJ[:20, :size], qkv_TJ[:20, size : 2 * size] = scale * signs, signs
    qkv_TJ[:, 2 * size :] *= values
    qkv_TJ = qkv_TJ.bfloat16()
    packed = pack(made_up(lengths), CPU)
    with torch.inference_mode():
        found_TH = default_ops(CPU, torch.bfloat16).attend(qkv_TJ, packed, heads, 20)
        expected_TH = TorchOps().attend(qkv_TJ.float(), packed, heads, 20)
    torch.testing.assert_close(found_TH.float(), expected_TH, atol=0.02 * values, rtol=0.02)


@needs_gpu
@pytest.mark.parametrize("lengths", [[5, 100, 64, 2, 160], [*LENGTHS, 300]])
@pytest.mark.parametrize("queries", [1, 300])
@pytest.mark.parametrize(("heads", "size"), [(4, 64), (12, 384), (12, 768), (2, 256)])
def test_kernels_compute_what_plain_pytorch_computes(heads: int, size: int, queries: int, lengths: list[int]) -> None:
    cuda = torch.device("cuda")
    packed = pack(made_up(lengths), cuda)
    packed = replace(packed, types_T=packed.types_T * 0)
    generator = torch.Generator(cuda).manual_seed(3)
    sizes = {**SIZES, "hidden_size": size, "num_attention_heads": heads}
    body = randomised(BertModel(BertConfig(**sizes), add_pooling_layer=False))
    tables = tables_of(body, cuda)
    qkv_TJ = torch.randn(len(packed.ids_T), 3 * size, generator=generator, device=cuda).bfloat16()
    x_TH, bias_H = qkv_TJ[:, :size].contiguous(), qkv_TJ[0, :size].contiguous()
    found, expected = ([
        ops.embed(tables, packed, torch.bfloat16), ops.attend(qkv_TJ, packed, heads, queries),
        ops.add_norm(x_TH, bias_H, tables.norm, torch.bfloat16),
    ] for ops in (default_ops(cuda, torch.bfloat16), TorchOps()))  # fmt: skip
    rows = slice(None) if queries > 1 else packed.offsets[:-1].long()
    for name, ours, theirs in zip(("embed", "attend", "add_norm"), found, expected, strict=True):
        if name == "attend":
            ours, theirs = ours[rows], theirs[rows]
        error = (ours.float() - theirs.float()).norm() / theirs.float().norm()
        assert error < 5e-3, name


@needs_gpu
@pytest.mark.parametrize("pooling", ["cls", "mean", "max"])
def test_packed_bf16_on_a_gpu_keeps_the_vectors(tmp_path: Path, pooling: Any) -> None:
    sizes = {"hidden_size": 384, "num_attention_heads": 12, "intermediate_size": 1536, "initializer_range": 0.05}
    tower = resolve(EncoderConfig(model=str(save_bert(tmp_path, **sizes)), pooling=pooling)).passage
    network, tokens = load_network(tower), made_up(LENGTHS * 9)
    with torch.inference_mode():
        expected_ND = PaddedForward(network, tower, CPU)(tokens)
    cuda = torch.device("cuda")
    found_ND = PackedForward(network.to(torch.float32, cuda), tower, cuda)(tokens)
    assert torch.cosine_similarity(found_ND, expected_ND).min() > 0.999


@needs_gpu
def test_a_gpu_that_runs_out_of_memory_goes_on_with_smaller_batches(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    tower = resolve(
        EncoderConfig(model=str(save_bert(tmp_path, hidden_size=384, **HEADS_OF_64)), pooling="cls")
    ).passage
    encoder, tokens = TowerEncoder(tower, Compute("bf16", device="cuda")), made_up([200] * 2000)
    assert "packed" in encoder.choice
    expected_ND = encoder.encode(tokens)
    assert not caplog.records
    torch.cuda.empty_cache()
    total_bytes = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_reserved() + 300e6) / total_bytes)
    try:
        found_ND = encoder.encode(tokens)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert any("out of memory" in record.message for record in caplog.records)
    assert (
        torch.cosine_similarity(torch.from_numpy(found_ND).double(), torch.from_numpy(expected_ND).double()).min()
        > 0.9999
    )


def test_packing_keeps_rows_types_and_places() -> None:
    packed = pack(TokenBatch(np.array([7, 8, 9], np.int32), np.array([0, 1, 0], np.uint8), np.array([0, 2, 3])), CPU)
    assert packed.longest == 2
    assert [x.tolist() for x in (packed.ids_T, packed.types_T, packed.places_T, packed.offsets)] == [
        [7, 8, 9], [0, 1, 0], [0, 1, 0], [0, 2, 3]
    ]  # fmt: skip
    assert {x.dtype for x in (packed.ids_T, packed.types_T, packed.places_T, packed.offsets)} == {torch.int32}
