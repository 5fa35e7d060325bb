"""Products in fp8: rounding compared with a table of all its numbers, products with float64, passes with bf16 and fp32.

The kernels of a GPU are compared with plain PyTorch on a GPU, or on Triton's interpreter (TRITON_INTERPRET=1).
"""

import importlib.util
import os
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from transformers import BertConfig, BertModel

from dpr.encoder.compute import Compute
from dpr.encoder.encode import TowerEncoder
from dpr.encoder.network import load_network
from dpr.encoder.packed import Linear, Norm
from dpr.encoder.packed_forward import PackedForward, default_fp8, pack
from dpr.encoder.packed_fp8 import FP8, CodedLinear, EmulatedFp8, Fp8Bert, activated, code_rows, multiplies_fp8
from dpr.encoder.packed_torch import TorchOps
from dpr.encoder.padded import PaddedForward
from dpr.encoder.question_encoder import QuestionEncoder
from dpr.encoder.spec import EncoderSpec, resolve
from dpr.errors import EncoderError
from dpr.recipe import EncoderConfig
from tests.encoder.models import SIZES, random_tokens, save_bert

CPU = torch.device("cpu")
ALL = ("qkv", "out", "up", "down")
LENGTHS = [5, 100, 64, 65, 2, 128, 3, 17]
HEADS = {"num_attention_heads": 2}
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
needs_kernels = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None or not (torch.cuda.is_available() or INTERPRETED),
    reason="neither a GPU nor Triton's interpreter",
)
has_fp8 = torch.cuda.is_available() and multiplies_fp8(torch.device("cuda"))
needs_fp8 = pytest.mark.skipif(not has_fp8, reason="no GPU that multiplies fp8")


def all_numbers() -> np.ndarray:
    """Every positive number of e4m3 and 0, by its definition: 4 bits of exponent, 3 of mantissa, no infinity."""
    small = [mantissa / 8 * 2.0**-6 for mantissa in range(8)]
    large = [(1 + mantissa / 8) * 2.0 ** (exponent - 7) for exponent in range(1, 16) for mantissa in range(8)]
    return np.array([*small, *large[:-1]])


def test_codes_are_the_nearest_numbers_of_fp8() -> None:
    x_TI = torch.randn(40, 33, generator=torch.Generator().manual_seed(0)) * torch.logspace(-6, 6, 40)[:, None]
    x_TI[3] = 0.0
    coded, numbers = code_rows(x_TI), all_numbers()
    scales_T = coded.scales_T.double().numpy()
    np.testing.assert_allclose(scales_T[:, 0], x_TI.abs().amax(1).clamp_min(1e-12).double() / 448, rtol=1e-6)
    scaled_TI = x_TI.double().numpy() / scales_T
    nearest_TI = np.abs(np.abs(scaled_TI)[:, :, None] - numbers).min(axis=2)
    errors_TI = np.abs(coded.codes_TI.double().numpy() - scaled_TI)
    np.testing.assert_allclose(errors_TI, nearest_TI, atol=1e-4)
    assert not coded.codes_TI[3].float().any()


def test_an_emulated_product_is_that_of_its_codes() -> None:
    generator = torch.Generator().manual_seed(1)
    x_TI, weight_JI = torch.randn(20, 48, generator=generator), torch.randn(32, 48, generator=generator)
    bias_J = torch.randn(32, generator=generator).bfloat16()
    x, weight = code_rows(x_TI), code_rows(weight_JI)
    ops = EmulatedFp8(TorchOps())
    linear = ops.prepared(CodedLinear(weight.codes_TI, weight.scales_T.t(), bias_J))
    exact_TI, exact_JI = (each.codes_TI.double() * each.scales_T.double() for each in (x, weight))
    expected_TJ = exact_TI @ exact_JI.t() + bias_J.double()
    torch.testing.assert_close(ops.project(x, linear).double(), expected_TJ, atol=0.05, rtol=0.01)


@pytest.fixture(scope="module")
def spec(tmp_path_factory: pytest.TempPathFactory) -> EncoderSpec:
    folder = save_bert(
        tmp_path_factory.mktemp("fp8") / "bert", **{**HEADS, "hidden_size": 64, "intermediate_size": 128}
    )
    return resolve(EncoderConfig(model=str(folder), pooling="mean", precision="fp8"))


@pytest.mark.parametrize("products", [(), ("up",), ("down",), ("0.qkv", "1.out"), ALL])
@pytest.mark.parametrize("pooling", ["cls", "mean"])
def test_vectors_stay_near_those_of_fp32(spec: EncoderSpec, products: tuple[str, ...], pooling: str) -> None:
    tower = replace(spec.passage, fp8_products=products, pooling=pooling)
    network, tokens = load_network(tower), random_tokens(LENGTHS)
    with torch.inference_mode():
        exact_BD = PaddedForward(network, tower, CPU)(tokens)
    forward = PackedForward(network, tower, CPU, FP8)
    found_BD = forward(tokens)
    assert torch.cosine_similarity(found_BD, exact_BD).min() > (0.98 if products else 0.9995)
    more = torch.cat([found_BD, forward(tokens.select(np.array([4, 1])))])[len(LENGTHS) :]
    assert torch.cosine_similarity(more, exact_BD[[4, 1]]).min() > 0.98


def test_only_the_named_products_are_rounded(spec: EncoderSpec) -> None:
    body, tokens = load_network(spec.passage).body, pack(random_tokens(LENGTHS), CPU)
    with torch.inference_mode():
        plain_TH, *others = (
            Fp8Bert(body, EmulatedFp8(TorchOps()), products, CPU).hidden(tokens)
            for products in ((), ("2.up",), ("1.up",), ("0.up", "1.up"), ("up",))
        )
    assert torch.equal(plain_TH, others[0])  # there is no third layer
    assert not torch.equal(plain_TH, others[1])
    assert not torch.equal(others[1], others[2])
    assert torch.equal(others[2], others[3])


def test_fp8_is_part_of_the_encoder_id_of_passages(spec: EncoderSpec) -> None:
    plain = resolve(spec.config.model_copy(update={"precision": "bf16"}))
    fewer = resolve(spec.config.model_copy(update={"fp8_products": ["up"]}))
    assert len({plain.encoder_id, spec.encoder_id, fewer.encoder_id}) == 3
    assert plain.question.identity() == spec.question.identity()
    assert TowerEncoder(spec.passage, Compute("fp8", threads=1)).choice.startswith("fp8 (qkv, up, down), as requested")
    choice = QuestionEncoder(spec.question, Compute("fp8", threads=1)).network.choice
    assert choice.startswith(("bf16", "fp32"))


def test_a_tower_that_is_not_packed_is_refused_in_a_sentence(spec: EncoderSpec) -> None:
    tower = replace(spec.passage, pooling="lasttoken")
    with pytest.raises(EncoderError, match=r"needs a packed forward pass.*set encoder\.precision to bf16") as refused:
        TowerEncoder(tower, Compute("fp8", threads=1))
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("name", ["upp", "up.3", "-1.up"])
def test_products_that_there_are_not_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match="fp8_products"):
        EncoderConfig(model="m", fp8_products=[name])


@needs_kernels
@pytest.mark.parametrize("size", [48, 384, 768, 3072])
@pytest.mark.parametrize("act", ["gelu", "relu"])
def test_kernels_compute_what_plain_pytorch_computes(monkeypatch: Any, size: int, act: str) -> None:
    from dpr.encoder import packed_fp8_triton

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    monkeypatch.setattr(packed_fp8_triton, "FP8", torch.float32)  # before rounding: the interpreter truncates
    ops, plain = packed_fp8_triton.TritonFp8(), EmulatedFp8(TorchOps())
    generator = torch.Generator().manual_seed(2)
    x_TH, y_TH, bias_H = (torch.randn(n, size, generator=generator).bfloat16().to(device) for n in (13, 13, 1))
    norm = Norm(bias_H[0].float(), y_TH[0].float(), 1e-12)
    pairs = [(ops.code(x_TH), plain.code(x_TH)), (ops._rounded(x_TH, act), code_rows(activated(x_TH.float(), act)))]
    identity = Linear(torch.eye(size, device=device).bfloat16(), bias_H[0])
    for y in (None, y_TH):
        out_TH, coded = ops._add_norm(x_TH, y, bias_H[0], norm, torch.float32)
        zeros_TH = torch.zeros_like(x_TH) if y is None else y
        expected_TH, theirs = plain.merge(x_TH, zeros_TH, identity, norm, torch.float32)
        torch.testing.assert_close(out_TH, expected_TH, atol=0.03, rtol=0.02)  # the product there is rounded once more
        pairs.append((coded, theirs))
    for place, (ours, theirs) in enumerate(pairs):
        exact = place < 2
        torch.testing.assert_close(ours.scales_T, theirs.scales_T, rtol=1e-5 if exact else 0.02, atol=0)
        if exact:
            same = ours.codes_TI.to(FP8).float() == theirs.codes_TI.float()
            assert same.float().mean() > 0.999


@needs_fp8
@pytest.mark.parametrize("products", [("qkv", "up", "down"), ALL])
def test_a_gpu_gives_the_vectors_of_emulated_fp8(products: tuple[str, ...]) -> None:
    cuda = torch.device("cuda")
    torch.manual_seed(0)
    sizes = {**SIZES, "hidden_size": 384, "num_attention_heads": 6, "intermediate_size": 1536}
    body = BertModel(BertConfig(**sizes), add_pooling_layer=False).eval().to(cuda)
    tokens = pack(random_tokens(LENGTHS * 9), cuda)
    ops = default_fp8(cuda)
    with torch.inference_mode():
        found_TH, emulated_TH = (
            Fp8Bert(body, each, products, cuda).hidden(tokens) for each in (ops, EmulatedFp8(ops.base))
        )
    assert torch.cosine_similarity(found_TH, emulated_TH).min() > 0.995
