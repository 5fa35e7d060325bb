"""Products in fp8: rounding compared with a table of all its numbers, products with float64, passes with bf16 and fp32.

The kernels of a GPU are compared with plain PyTorch on a GPU, or on Triton's interpreter (TRITON_INTERPRET=1).
"""

import importlib.util
import math
import os
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import BertConfig, BertModel, MPNetConfig, MPNetModel

from dpr.encoder import packed_fp8
from dpr.encoder.compute import Compute
from dpr.encoder.encode import TowerEncoder
from dpr.encoder.fp8_bert import Fp8Bert
from dpr.encoder.network import load_network
from dpr.encoder.packed import Norm, pool_packed
from dpr.encoder.packed_bert import PackedBert
from dpr.encoder.packed_forward import PackedForward, default_fp8, pack
from dpr.encoder.packed_fp8 import (
    FP8,
    Coded,
    CodedLinear,
    EmulatedFp8,
    activated,
    code,
    code_weight,
    multiplies_fp8,
    scale_for,
)
from dpr.encoder.packed_torch import TorchOps
from dpr.encoder.padded import PaddedForward
from dpr.encoder.question_encoder import QuestionEncoder
from dpr.encoder.spec import EncoderSpec, resolve
from dpr.errors import EncoderError
from dpr.recipe import EncoderConfig
from tests.encoder.models import SIZES, random_tokens, save_bert, save_mpnet

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
    x_TI = torch.randn(40, 33, generator=torch.Generator().manual_seed(0)) * torch.logspace(-6, 2, 40)[:, None]
    scale = scale_for(float(x_TI.abs().max()))
    coded, numbers = code(x_TI, scale), all_numbers()
    scaled_TI = x_TI.double().numpy() / scale
    nearest_TI = np.abs(np.abs(scaled_TI)[:, :, None] - numbers).min(axis=2)
    errors_TI = np.abs(coded.codes_TI.double().numpy() - scaled_TI)
    np.testing.assert_allclose(errors_TI, nearest_TI, rtol=1e-6, atol=1e-12)


@given(st.floats(1e-6, 1e6))
def test_a_scale_is_the_smallest_power_of_two_that_cuts_nothing_off(bound: float) -> None:
    scale = scale_for(bound)
    assert math.frexp(scale)[0] == 0.5
    assert scale / 2 * 448 < bound * 1.25 <= scale * 448


def test_an_emulated_product_is_that_of_its_codes() -> None:
    generator = torch.Generator().manual_seed(1)
    x_TI, weight_JI = torch.randn(20, 48, generator=generator), torch.randn(32, 48, generator=generator)
    bias_J = torch.randn(32, generator=generator).bfloat16()
    x, weight = code(x_TI, 1 / 64), code_weight(weight_JI)
    ops = EmulatedFp8(TorchOps())
    linear = ops.prepared(CodedLinear(weight.codes_TI, weight.scale, bias_J))
    exact_TI, exact_JI = (each.codes_TI.double() * each.scale for each in (x, weight))
    expected_TJ = exact_TI @ exact_JI.t() + bias_J.double()
    torch.testing.assert_close(ops.project(x, linear).double(), expected_TJ, atol=0.05, rtol=0.01)


def lowest(spec: EncoderSpec, cosines_N: torch.Tensor) -> float:
    """Return the lowest cosine; of MPNet the mean, since nearly equal scores with random biases fall either way."""
    return float(cosines_N.mean() if spec.passage.architecture == "MPNetModel" else cosines_N.min())


def with_outliers(body: Any) -> Any:
    """Make some components of each normalisation many times larger than others, as large models have them."""
    generator = torch.Generator().manual_seed(9)
    with torch.no_grad():
        for norm in [each for each in body.modules() if isinstance(each, torch.nn.LayerNorm)]:
            norm.weight.copy_(0.5 + torch.rand(norm.weight.shape, generator=generator))
            norm.bias.copy_(torch.randn(norm.bias.shape, generator=generator))
            norm.weight[3], norm.bias[5] = 40.0, -30.0
    return body


def test_without_rounding_the_pass_is_that_of_bf16(spec: EncoderSpec, monkeypatch: pytest.MonkeyPatch) -> None:
    """The weights of normalisations, which become part of the next product, are multiplied once and only once."""
    network, tokens = load_network(spec.passage), pack(random_tokens(LENGTHS), CPU)
    body = with_outliers(network.body)
    monkeypatch.setattr(packed_fp8, "FP8", torch.float32)
    with torch.inference_mode():
        exact_TH = PackedBert(body, TorchOps(), torch.float32, CPU).hidden(tokens)
        found_TH = Fp8Bert(body, EmulatedFp8(TorchOps()), ALL, CPU).hidden(tokens)
    assert lowest(spec, torch.cosine_similarity(found_TH, exact_TH)) > 0.999


def test_nothing_is_cut_off(spec: EncoderSpec) -> None:
    network, tokens = load_network(spec.passage), pack(random_tokens(LENGTHS), CPU)
    largest = list[float]()

    class Watched(EmulatedFp8):
        def code(self, x_TI: torch.Tensor, scale: float) -> Coded:
            largest.append(float(x_TI.abs().max()) / scale)
            return super().code(x_TI, scale)

        def attend(self, *given: Any) -> Coded:
            return self.code(self.base.attend(*given[:-1]), given[-1])

        def activate(self, x: Coded, linear: CodedLinear, act: str, scale: float) -> Coded:
            return self.code(activated(self.project(x, linear).float(), act), scale)

    with torch.inference_mode():
        Fp8Bert(with_outliers(network.body), Watched(TorchOps()), ALL, CPU).hidden(tokens)
    assert 1 < min(largest) <= max(largest) <= 448


@pytest.fixture(scope="module", params=[save_bert, save_mpnet], ids=["BERT", "MPNet"])
def spec(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> EncoderSpec:
    folder = request.param(
        tmp_path_factory.mktemp("fp8") / "model", **{**HEADS, "hidden_size": 64, "intermediate_size": 128}
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
    cosines_B = torch.cosine_similarity(found_BD, exact_BD)
    assert (lowest(spec, cosines_B) > 0.98) if products else (cosines_B.min() > 0.9995)
    more = torch.cat([found_BD, forward(tokens.select(np.array([4, 1])))])[len(LENGTHS) :]
    assert lowest(spec, torch.cosine_similarity(more, exact_BD[[4, 1]])) > 0.98


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
    encoder = TowerEncoder(spec.passage, Compute("fp8", threads=1))
    assert encoder.choice.startswith("fp8 (qkv, out, up, down), as requested")
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
def test_kernels_compute_what_plain_pytorch_computes(monkeypatch: Any, size: int) -> None:
    from dpr.encoder import packed_fp8_triton

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    monkeypatch.setattr(packed_fp8_triton, "FP8", torch.float32)  # before rounding: the interpreter truncates
    monkeypatch.setattr(packed_fp8_triton, "Fp8Products", lambda _: None)
    ops, plain = packed_fp8_triton.TritonFp8(device), EmulatedFp8(TorchOps())
    generator = torch.Generator().manual_seed(2)
    x_TH, y_TH, bias_H = (torch.randn(n, size, generator=generator).bfloat16().to(device) for n in (13, 13, 1))
    norm = Norm(bias_H[0].float(), y_TH[0].float(), 1e-12)
    ours, theirs = (each.normalise(x_TH, bias_H[0], norm, torch.float32) for each in (ops, plain))
    torch.testing.assert_close(ours[0], theirs[0], atol=1e-5, rtol=1e-5)
    for found, expected in ((ours[1], theirs[1]), (ops.code(x_TH, 0.25), plain.code(x_TH, 0.25))):
        assert found.scale == expected.scale
        assert (found.codes_TI.to(FP8).float() == expected.codes_TI.float()).float().mean() > 0.999


@needs_fp8
@pytest.mark.parametrize("act", ["none", "gelu", "relu"])
@pytest.mark.parametrize("tokens", [1, 13, 500])
def test_products_of_a_gpu_are_those_of_their_codes(act: str, tokens: int) -> None:
    from dpr.encoder.cublaslt import Fp8Products

    cuda, generator = torch.device("cuda"), torch.Generator().manual_seed(3)
    x, weight = (
        code(torch.randn(tokens, 128, generator=generator), 0.125),
        code_weight(torch.randn(96, 128, generator=generator)),
    )
    bias_J, before_TJ = (torch.randn(*shape, generator=generator).bfloat16() for shape in ((96,), (tokens, 96)))
    sums_TJ = x.codes_TI.double() @ weight.codes_TI.double().t() * x.scale * weight.scale
    exact_TJ = sums_TJ + bias_J.double()
    if act != "none":
        exact_TJ = activated(exact_TJ, act)
    products, factor = Fp8Products(cuda), x.scale * weight.scale
    codes_TI, codes_JI = x.codes_TI.to(cuda), weight.codes_TI.to(cuda)
    for dtype, out_factor in ((torch.bfloat16, None), (FP8, torch.tensor(4.0, device=cuda))):
        out_TJ = torch.empty(tokens, 96, dtype=dtype, device=cuda)
        products.multiply(codes_TI, codes_JI, factor, out_TJ, bias_J=bias_J.to(cuda), act=act, out_factor=out_factor)
        found_TJ = out_TJ.double().cpu() / (4 if out_factor is not None else 1)
        torch.testing.assert_close(found_TJ, exact_TJ, rtol=0.01 if out_factor is None else 0.07, atol=0.02)
    added_TJ = products.multiply(codes_TI, codes_JI, factor, before_TJ.to(cuda), add=True)
    torch.testing.assert_close(added_TJ.double().cpu(), sums_TJ + before_TJ.double(), rtol=0.01, atol=0.02)


@needs_fp8
@pytest.mark.parametrize(("config", "model"), [(BertConfig, BertModel), (MPNetConfig, MPNetModel)])
@pytest.mark.parametrize("products", [("qkv", "up", "down"), ALL])
def test_a_gpu_gives_the_vectors_of_emulated_fp8(products: tuple[str, ...], config: Any, model: Any) -> None:
    cuda, rows = torch.device("cuda"), random_tokens(LENGTHS * 9)
    torch.manual_seed(0)
    sizes = {**SIZES, "hidden_size": 384, "num_attention_heads": 6, "intermediate_size": 1536}
    body = model(config(**sizes), add_pooling_layer=False).eval().to(cuda)
    if model is MPNetModel:
        torch.nn.init.normal_(body.encoder.relative_attention_bias.weight)
    tokens, ops = pack(rows, cuda), default_fp8(cuda)
    with torch.inference_mode():
        found_BH, emulated_BH, exact_BH = (
            pool_packed(bert.hidden(tokens), tokens, "mean")
            for bert in (
                Fp8Bert(body, ops, products, cuda),
                Fp8Bert(body, EmulatedFp8(ops.base), products, cuda),
                PackedBert(body, ops.base, torch.bfloat16, cuda),
            )
        )
    ours, theirs = ((1 - torch.cosine_similarity(each, exact_BH)).mean() for each in (found_BH, emulated_BH))
    torch.testing.assert_close(ours, theirs, rtol=0.2, atol=0)  # as far from bf16 as emulated fp8 is, and near that
    assert torch.cosine_similarity(found_BH, emulated_BH).mean() > 0.99
