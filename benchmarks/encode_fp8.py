"""How fast and how exact the forward pass with fp8 products is on one GPU, beside bf16 in the same run.

    python benchmarks/encode_fp8.py

It needs neither a corpus nor a model: BERT-base with random weights, and random tokens in sequences of about 175. First
each operation is compared with plain PyTorch on the same GPU, and whole vectors with emulated fp8 and with fp32. Then
products, and whole passes with different products in fp8, are timed in turn. A run takes about two minutes on an H100.
`--small` tries the script itself on a CPU, where fp8 is emulated.

Shapes as in dpr/encoder/packed_fp8.py.
"""

import argparse
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from encode_subject import random_bert
from torch import Tensor
from transformers import BertConfig

from dpr.encoder.fp8_bert import Fp8Bert
from dpr.encoder.network import Network
from dpr.encoder.packed import Linear, Norm
from dpr.encoder.packed_forward import PackedForward, default_fp8
from dpr.encoder.packed_fp8 import FP8, Coded, CodedLinear, EmulatedFp8, code, code_weight, normed_scale
from dpr.encoder.padded import PaddedForward
from dpr.encoder.tokens import TokenBatch
from dpr.encoder.tower import TowerSpec

CHOICES: dict[str, tuple[str, ...]] = {
    "fp8: all": ("qkv", "out", "up", "down"),
    "fp8: qkv, up, down": ("qkv", "up", "down"),
    "fp8: up, down": ("up", "down"),
    "fp8: qkv": ("qkv",),
}
BATCH_TOKENS, SMALL_TOKENS = 262_144, 2_048
ROUNDS, BATCHES, THREADS = 3, 24, 3


def tower_of(dim: int, products: tuple[str, ...] = ()) -> TowerSpec:
    """A tower with mean pooling whose network is made here."""
    return TowerSpec(
        "random", Path(), "BertModel", "0", "mean", True, "", 512, "space", True, dim, fp8_products=products
    )


def random_network(config: BertConfig, device: torch.device) -> Network:
    """Return BERT with the weights of `random_bert`."""
    return Network(random_bert(config).eval(), None, tower_of(config.hidden_size)).to(torch.float32, device)


def random_tokens(tokens: int, seed: int) -> TokenBatch:
    """Sequences of 60 to 256 tokens, 175 on average, the longest first as in sorted batches."""
    rng = np.random.default_rng(seed)
    lengths_N = np.sort(np.clip(rng.normal(178, 50, 1 + tokens // 175), 60, 256).astype(np.int64))[::-1]
    offsets = np.concatenate([[0], np.cumsum(lengths_N)])
    ids_T = rng.integers(1000, 28_000, offsets[-1], dtype=np.int32)
    return TokenBatch(ids_T, np.zeros(len(ids_T), np.uint8), offsets)


def wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def compare_operations(device: torch.device, size: int, inner: int, rows: int) -> None:
    """Print how far each operation is from plain PyTorch on the same device."""
    ops, plain = default_fp8(device), EmulatedFp8(default_fp8(device).base)
    generator = torch.Generator(device).manual_seed(1)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, device=device)

    x_TH, norm = draw(rows, size).bfloat16(), Norm(1 + 0.2 * draw(size), 0.1 * draw(size), 1e-12)
    x, up = code(x_TH, normed_scale(size)), code(0.3 * draw(rows, inner), 1 / 16)
    wide, narrow = (coded_product(0.04 * draw(*shape)) for shape in ((inner, size), (size, inner)))
    print(f"\n{'operation':32s} relative error; codes that differ")
    show("project", *(each.project(x, each.prepared(wide)) for each in (ops, plain)))
    show("code", ops.code(x_TH, x.scale), plain.code(x_TH, x.scale))
    for act in ("gelu", "relu"):
        show(f"activate, {act}", *(each.activate(x, each.prepared(wide), act, 1 / 16) for each in (ops, plain)))
    show("add", *(each.add(x_TH.clone(), up, each.prepared(narrow)) for each in (ops, plain)))
    pairs = zip(*(each.normalise(x_TH, norm.bias_H, norm, torch.bfloat16) for each in (ops, plain)), strict=True)
    for name, pair in zip(("normalise", "normalise, codes"), pairs, strict=True):
        show(name, *pair)


def coded_product(weight_JI: Tensor) -> CodedLinear:
    coded = code_weight(weight_JI)
    return CodedLinear(coded.codes_TI, coded.scale, weight_JI[:, 0].bfloat16())


def show(name: str, ours: Tensor | Coded, theirs: Tensor | Coded) -> None:
    differ = ""
    if isinstance(ours, Coded) and isinstance(theirs, Coded):
        codes = [each.codes_TI.view(torch.uint8) for each in (ours, theirs)]
        differ = f"; {float((codes[0] != codes[1]).float().mean()):.5f}"
        ours, theirs = (each.codes_TI.float() * each.scale for each in (ours, theirs))
    if isinstance(ours, Tensor) and isinstance(theirs, Tensor):
        error = float((ours.float() - theirs.float()).norm() / theirs.float().norm())
        print(f"{name:32s} {error:.6f}{differ}", flush=True)


def compare_vectors(network: Network, device: torch.device) -> None:
    """Print the cosines of vectors with those of fp32, and of the kernels with emulated fp8."""
    tower, tokens = network_tower(network), random_tokens(64 * 175, 5)
    with torch.inference_mode():
        exact_BD = PaddedForward(network, tower, device)(tokens).double()
    found = {"bf16": PackedForward(network, tower, device)(tokens).double()}
    print(f"\n{'vectors of 64 sequences':32s} least and mean cosine with fp32; least with emulated fp8")
    for name, products in CHOICES.items():
        forward = PackedForward(network, replace(tower, fp8_products=products), device, FP8)
        found[name] = forward(tokens).double()
        forward._bert = Fp8Bert(network.body, EmulatedFp8(forward._ops), products, device)
        emulated_BD = forward(tokens).double()
        same = f"; {float(torch.cosine_similarity(found[name], emulated_BD).min()):.5f}"
        print_cosines(name, found[name], exact_BD, same)
    print_cosines("bf16", found["bf16"], exact_BD, "")


def print_cosines(name: str, found_BD: Tensor, exact_BD: Tensor, more: str) -> None:
    cosines_B = torch.cosine_similarity(found_BD, exact_BD)
    print(f"{name:32s} {float(cosines_B.min()):.5f} {float(cosines_B.mean()):.6f}{more}", flush=True)


def network_tower(network: Network) -> TowerSpec:
    return tower_of(int(network.body.config.hidden_size))


def product_rates(device: torch.device, size: int, inner: int, rows: int) -> None:
    """Print the rates of a layer's products as the two passes compute them, TFLOP/s."""
    ops, base = default_fp8(device), default_fp8(device).base
    print(f"\n{'product':12s} bf16, fp8, ratio; {rows:,} tokens")
    for name, inputs, outputs in (
        ("qkv", size, 3 * size), ("out", size, size), ("up", size, inner), ("down", inner, size)
    ):  # fmt: skip
        x_TI, weight_JI = torch.randn(rows, inputs, device=device), 0.04 * torch.randn(outputs, inputs, device=device)
        linear, coded = Linear(weight_JI.bfloat16(), weight_JI[:, 0].bfloat16()), coded_product(weight_JI)
        plain_TI, x, before_TJ = (
            x_TI.bfloat16(),
            code(x_TI, 1 / 16),
            torch.zeros(rows, outputs, device=device).bfloat16(),
        )
        variants: list[Callable[[], object]]
        if name == "qkv":
            variants = [lambda: base.project(plain_TI, linear), lambda: ops.project(x, coded)]  # noqa: B023
        elif name == "up":
            variants = [lambda: base.activate(plain_TI, linear, "gelu"), lambda: ops.activate(x, coded, "gelu", 1 / 16)]  # noqa: B023
        else:
            variants = [lambda: ops.add(before_TJ, plain_TI, linear), lambda: ops.add(before_TJ, x, coded)]  # noqa: B023
        rates = [2 * rows * inputs * outputs / seconds_of(variant) / 1e12 for variant in variants]
        print(f"{name:12s} {rates[0]:.0f}, {rates[1]:.0f}, {rates[1] / rates[0]:.2f}", flush=True)


def seconds_of(work: Callable[[], object], seconds: float = 0.5) -> float:
    """The time of one call, of as many as take so long."""
    work()
    wait()
    started, calls = time.perf_counter(), 0
    while time.perf_counter() - started < seconds:
        for _ in range(10):
            work()
        wait()
        calls += 10
    return (time.perf_counter() - started) / calls


def rate(forward: PackedForward, batches: Sequence[TokenBatch]) -> float:
    """Passages a second, with the threads that keep a GPU busy."""
    with ThreadPoolExecutor(THREADS) as pool:
        list(pool.map(forward, batches[:THREADS]))
        wait()
        started = time.perf_counter()
        list(pool.map(forward, batches))
    return sum(len(batch) for batch in batches) / (time.perf_counter() - started)


def passes(network: Network, device: torch.device, tokens: int, batches: int) -> dict[str, PackedForward]:
    """Time whole passes in turn, print their rates; return them."""
    tower = network_tower(network)
    variants = {"bf16": PackedForward(network, tower, device)}
    for name, products in CHOICES.items():
        variants[name] = PackedForward(network, replace(tower, fp8_products=products), device, FP8)
    made = [random_tokens(tokens, seed) for seed in range(4)]
    units = [made[n % len(made)] for n in range(batches)]
    rates: dict[str, list[float]] = {name: [] for name in variants}
    for _ in range(ROUNDS):
        for name, forward in variants.items():
            rates[name].append(rate(forward, units))
    length = np.mean([len(each.ids_T) / len(each) for each in made])
    print(f"\n{'whole passes':32s} passages/s of {length:.0f} tokens, median of {ROUNDS} (all); over bf16")
    base = float(np.median(rates["bf16"]))
    for name, found in rates.items():
        every = ", ".join(f"{each:,.0f}" for each in found)
        print(f"{name:32s} {np.median(found):,.0f} ({every}); {np.median(found) / base:.3f}", flush=True)
    return variants


def kernels(forward: PackedForward, tokens: TokenBatch) -> None:
    """Print the GPU time of a batch by kernel."""
    forward(tokens)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as traced:
        forward(tokens)
    spans = sorted(traced.key_averages(), key=lambda each: -each.device_time_total)
    total = sum(each.device_time_total for each in spans)
    print(f"\nkernels of a batch, {total / 1e3:.1f} ms")
    for each in spans[:12]:
        print(f"{each.device_time_total / total:.3f} {each.count:4d} times  {each.key[:90]}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--small", action="store_true", help="a small network and few tokens, on any device")
    small = parser.parse_args().small
    started = time.perf_counter()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    print(torch.cuda.get_device_name() if device.type == "cuda" else "CPU", "torch", torch.__version__)
    sizes = {"hidden_size": 128, "num_attention_heads": 2, "intermediate_size": 512, "num_hidden_layers": 2}
    config = BertConfig(**sizes) if small else BertConfig()
    size, inner = int(config.hidden_size), int(config.intermediate_size)
    network = random_network(config, device)
    with torch.inference_mode():
        compare_operations(device, size, inner, 1_000)
        if device.type == "cuda":
            product_rates(device, size, inner, SMALL_TOKENS if small else 131_072)
    compare_vectors(network, device)
    tokens, batches = (SMALL_TOKENS, 3) if small else (BATCH_TOKENS, BATCHES)
    variants = passes(network, device, tokens, batches)
    if device.type == "cuda":
        for name in ("bf16", "fp8: all"):
            print(f"\n{name}", end="")
            kernels(variants[name], random_tokens(tokens, 0))
    print(f"\n{time.perf_counter() - started:.0f} s in all")


if __name__ == "__main__":
    main()
