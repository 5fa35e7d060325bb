"""The packed forward pass against transformers' own, and its kernels against plain PyTorch."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
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
    MPNetConfig,
    MPNetModel,
    RobertaConfig,
    RobertaModel,
)

from dpr.encoder.compute import Compute
from dpr.encoder.encode import TowerEncoder
from dpr.encoder.network import load_network
from dpr.encoder.packed_bert import PackedBert, supports
from dpr.encoder.packed_cpu import CpuOps
from dpr.encoder.packed_forward import PackedForward, default_ops, pack
from dpr.encoder.packed_torch import TorchOps
from dpr.encoder.padded import PaddedForward
from dpr.encoder.precision import multiplies_bf16
from dpr.encoder.spec import resolve
from dpr.encoder.tokens import TokenBatch
from dpr.recipe import EncoderConfig
from tests.encoder.models import SIZES as SMALL
from tests.encoder.models import random_tokens, save_bert, save_mpnet

CPU = torch.device("cpu")
HEADS = {"num_attention_heads": 2}
HEADS_OF_64 = {"num_attention_heads": 6, "intermediate_size": 1536}
SIZES = {**SMALL, **HEADS}
LENGTHS = [5, 100, 64, 65, 2, 128, 3, 256, 17]
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")


def randomised(body: Any) -> Any:
    """Make biases and normalisations random: new ones are zeros and ones, so that ignoring them would pass."""
    torch.manual_seed(5)
    for name, weight in body.named_parameters():
        if weight.ndim == 1:
            weight.data = float("LayerNorm.weight" in name) + 0.2 * torch.randn_like(weight)
        if "relative_attention_bias" in name:
            weight.data = torch.randn_like(weight)
    return body.eval()


def each_alone(body: Any, tokens: TokenBatch) -> list[torch.Tensor]:
    """Return the token vectors of each row as the network computes them, one row at a time."""
    alone = []
    for first, last in zip(tokens.offsets[:-1], tokens.offsets[1:], strict=True):
        ids, types = (torch.from_numpy(x[None, first:last]).long() for x in (tokens.ids_T, tokens.types_T))
        inputs = {} if body.config.model_type == "mpnet" else {"token_type_ids": types}
        alone.append(body(input_ids=ids, **inputs).last_hidden_state[0])
    return alone


@pytest.mark.parametrize("act", ["gelu", "relu"])
@pytest.mark.parametrize(
    ("config", "model"),
    [
        (BertConfig, BertModel),
        (RobertaConfig, RobertaModel),
        (CamembertConfig, CamembertModel),
        (MPNetConfig, MPNetModel),
    ],
)
def test_packed_token_vectors_are_those_of_transformers(config: Any, model: Any, act: str) -> None:
    sizes = {**SIZES, "pad_token_id": 1, "type_vocab_size": 2, "hidden_act": act}
    body = randomised(model(config(**sizes), add_pooling_layer=False))
    assert supports(body)
    tokens = random_tokens(LENGTHS)
    packed = pack(tokens, CPU)
    with torch.inference_mode():
        alone = each_alone(body, tokens)
        bert = PackedBert(body, TorchOps(), torch.float32, CPU)
        torch.testing.assert_close(bert.hidden(packed), torch.cat(alone), atol=2e-5, rtol=1e-4)
        torch.testing.assert_close(bert.first(packed), torch.stack([x[0] for x in alone]), atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("heads", [1, 2, 4, 8])
def test_biases_of_distances_are_those_of_transformers_up_to_the_last_position(heads: int) -> None:
    """Beyond 128 tokens one bias serves several distances, and from there on all."""
    sizes = {**SIZES, "hidden_size": 128, "num_attention_heads": heads, "max_position_embeddings": 420}
    body = randomised(MPNetModel(MPNetConfig(**sizes, pad_token_id=1), add_pooling_layer=False))
    tokens = random_tokens([1, 418, 2, 129, 31, 418])
    packed = pack(tokens, CPU)
    with torch.inference_mode():
        alone = each_alone(body, tokens)
        bert = PackedBert(body, TorchOps(), torch.float32, CPU)
        torch.testing.assert_close(bert.hidden(packed), torch.cat(alone), atol=5e-5, rtol=1e-4)
        body.encoder.relative_attention_bias.weight.zero_()
        assert torch.cosine_similarity(torch.cat(each_alone(body, tokens)), torch.cat(alone)).mean() < 0.99


@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("pooling", ["cls", "mean", "max"])
@pytest.mark.parametrize("save", [save_bert, save_mpnet])
def test_packed_vectors_are_those_of_padded_batches(tmp_path: Path, save: Any, pooling: Any, normalize: bool) -> None:
    folder = save(tmp_path, **HEADS)
    tower = resolve(EncoderConfig(model=str(folder), pooling=pooling, normalize=normalize)).passage
    network, tokens = load_network(tower), random_tokens(LENGTHS)
    with torch.inference_mode():
        expected_ND = PaddedForward(network, tower, CPU)(tokens)
    found_ND = PackedForward(network, tower, CPU, torch.float32)(tokens)
    torch.testing.assert_close(found_ND, expected_ND, atol=2e-5, rtol=1e-4)


def test_a_projection_after_pooling_is_kept(dpr_pair: tuple[Path, Path]) -> None:
    context, question = dpr_pair
    tower = resolve(EncoderConfig(model=str(context), question_model=str(question))).passage
    network, tokens = load_network(tower), random_tokens(LENGTHS)
    assert supports(network.body)
    with torch.inference_mode():
        expected_ND = PaddedForward(network, tower, CPU)(tokens)
    found_ND = PackedForward(network, tower, CPU, torch.float32)(tokens)
    torch.testing.assert_close(found_ND, expected_ND, atol=2e-5, rtol=1e-4)


def test_networks_of_another_build_are_not_supported() -> None:
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


def test_a_cpu_computes_few_numbers_of_tokens_each_at_most_an_eighth_or_a_tile_more_than_there_are() -> None:
    computed = {tokens: CpuOps().computed_tokens(tokens) for tokens in range(1, 4097)}
    assert all(tokens <= more < tokens + max(16, tokens / 8) for tokens, more in computed.items())
    assert len(set(computed.values())) == 48


@pytest.mark.skipif(not multiplies_bf16(CPU), reason="this processor has no bf16 products")
@pytest.mark.parametrize("pooling", ["cls", "mean", "max"])
def test_tokens_that_follow_the_last_row_change_no_vector(shared_bert: Path, pooling: Any) -> None:
    tower = resolve(EncoderConfig(model=str(shared_bert), pooling=pooling)).passage
    forward, tokens = PackedForward(load_network(tower), tower, CPU), random_tokens([9, 5, 5, 5, 3])
    found_BD = forward(tokens)
    ops = forward._ops
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ops, "computed_tokens", lambda tokens: tokens)
        torch.testing.assert_close(found_BD, forward(tokens), atol=1e-2, rtol=1e-2)


@pytest.mark.slow
@pytest.mark.skipif(not multiplies_bf16(CPU), reason="this processor has no bf16 products")
@pytest.mark.parametrize("act", ["gelu", "gelu_new", "relu"])
@pytest.mark.parametrize("pooling", ["cls", "mean", "max"])
@pytest.mark.parametrize("save", [save_bert, save_mpnet])
def test_packed_bf16_on_a_cpu_keeps_the_vectors(tmp_path: Path, save: Any, pooling: Any, act: str) -> None:
    sizes = {"hidden_size": 384, "num_attention_heads": 12, "intermediate_size": 1536, "initializer_range": 0.05}
    folder = save(tmp_path, hidden_act=act, **sizes)
    tower = resolve(EncoderConfig(model=str(folder), pooling=pooling)).passage
    network, tokens = load_network(tower), random_tokens([*LENGTHS, 17, 17, 17, 5])
    randomised(network.body)
    with torch.inference_mode():
        expected_ND = PaddedForward(network, tower, CPU)(tokens)
    found_ND = PackedForward(network, tower, CPU)(tokens)
    assert torch.cosine_similarity(found_ND, expected_ND).min() > 0.999
    wrong_ND = PackedForward(network, tower, CPU)(tokens.select(np.arange(len(tokens))[::-1].copy()))
    assert torch.cosine_similarity(wrong_ND, expected_ND).min() < 0.99


@pytest.mark.skipif(not multiplies_bf16(CPU), reason="this processor has no bf16 products")
@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("lengths", [[20, 20, 7], [20, 20, 20, 7], [20, 1100, 1100]])
@pytest.mark.parametrize(
    ("scale", "alike", "values"),
    [(1.0, False, 1.0), (100.0, False, 1.0), (-100.0, True, 1.0), (14.0, False, 1e6)],
    ids=["ordinary scores", "scores of 566", "scores of -566", "products beyond bf16"],
)
def test_attention_on_a_cpu_is_that_of_plain_pytorch(
    lengths: list[int], scale: float, alike: bool, values: float, biased: bool
) -> None:
    """Also if exponentials leave the range of bf16, and for rows too long for the buffer of scores.

    In the first sequence each token has a score of 566 with itself and of about 0 with others; or all scores are -566;
    or scores are 79, and the values so large that their sum, weighted by exponentials, is too large for bf16.
    """
    heads, size = 2, 64
    generator = torch.Generator().manual_seed(3)
    qkv_TJ = torch.randn(sum(lengths), 3 * size, generator=generator)
    signs = torch.ones(20, size) if alike else qkv_TJ[:20, :size].sign()
    qkv_TJ[:20, :size], qkv_TJ[:20, size : 2 * size] = scale * signs, signs
    qkv_TJ[:, 2 * size :] *= values
    qkv_TJ = qkv_TJ.bfloat16()
    packed = pack(random_tokens(lengths), CPU)
    # a score of 566 is a multiple of 4 in bf16
    bias_NR = 4.0 * torch.randint(-1, 1, (heads, 2 * max(lengths) - 1), generator=generator)
    ops, plain = default_ops(CPU, torch.bfloat16), TorchOps()
    bias, plain_bias = (each.prepared_bias(bias_NR) if biased else None for each in (ops, plain))
    with torch.inference_mode():
        found_TH = ops.attend(qkv_TJ, packed, heads, max(lengths), bias)
        expected_TH = plain.attend(qkv_TJ.float(), packed, heads, max(lengths), plain_bias)
    torch.testing.assert_close(found_TH.float(), expected_TH, atol=0.02 * values, rtol=0.02)


@needs_gpu
@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("lengths", [[5, 100, 64, 2, 160], [*LENGTHS, 300]])
@pytest.mark.parametrize("queries", [1, 300])
@pytest.mark.parametrize(("heads", "size"), [(4, 64), (12, 384), (12, 768), (2, 256)])
def test_kernels_compute_what_plain_pytorch_computes(
    heads: int, size: int, queries: int, lengths: list[int], biased: bool
) -> None:
    cuda = torch.device("cuda")
    packed = pack(random_tokens(lengths), cuda)
    packed = replace(packed, types_T=packed.types_T * 0)
    generator = torch.Generator(cuda).manual_seed(3)
    sizes = {**SIZES, "hidden_size": size, "num_attention_heads": heads}
    body = randomised(BertModel(BertConfig(**sizes), add_pooling_layer=False))
    tables = PackedBert(body, TorchOps(), torch.bfloat16, cuda)._tables
    qkv_TJ = torch.randn(len(packed.ids_T), 3 * size, generator=generator, device=cuda).bfloat16()
    x_TH, bias_H = qkv_TJ[:, :size].contiguous(), qkv_TJ[0, :size].contiguous()
    bias_NR = 3 * torch.randn(heads, 2 * max(lengths) - 1, generator=generator, device=cuda)
    # attention in fp32, since plain PyTorch rounds biases to the type of its inputs
    found, expected = ([
        ops.embed(tables, packed, torch.bfloat16),
        ops.attend(qkv_TJ.to(dtype), packed, heads, queries, ops.prepared_bias(bias_NR) if biased else None),
        ops.add_norm(x_TH, bias_H, tables.norm, torch.bfloat16),
    ] for ops, dtype in ((default_ops(cuda, torch.bfloat16), torch.bfloat16), (TorchOps(), torch.float32)))  # fmt: skip
    rows = slice(None) if queries > 1 else packed.offsets[:-1].long()
    for name, ours, theirs in zip(("embed", "attend", "add_norm"), found, expected, strict=True):
        if name == "attend":
            ours, theirs = ours[rows], theirs[rows]
        error = (ours.float() - theirs.float()).norm() / theirs.float().norm()
        assert error < 5e-3, name


@needs_gpu
@pytest.mark.parametrize("pooling", ["cls", "mean", "max"])
@pytest.mark.parametrize("save", [save_bert, save_mpnet])
def test_packed_bf16_on_a_gpu_keeps_the_vectors(tmp_path: Path, save: Any, pooling: Any) -> None:
    sizes = {"hidden_size": 384, "num_attention_heads": 12, "intermediate_size": 1536, "initializer_range": 0.05}
    tower = resolve(EncoderConfig(model=str(save(tmp_path, **sizes)), pooling=pooling)).passage
    network, tokens = load_network(tower), random_tokens(LENGTHS * 9)
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
    encoder, tokens = TowerEncoder(tower, Compute("bf16", device="cuda")), random_tokens([200] * 2000)
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
