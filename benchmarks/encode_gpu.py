"""How fast a GPU encodes passages, beside the limit that its matrix products set and beside other ways to do the same.

    python benchmarks/encode_gpu.py --corpus CORPUS.jsonl.gz --tokenizer FOLDER --out benchmarks/results/encode_gpu.md

The network has the size of BERT-base, with random weights: the same ones for every way. Passages are those of the
corpus, tokenised beforehand, repeated up to --passages. With --real FOLDER, --questions and --qrels the accuracy of a
trained sentence-transformers model is measured too.
"""

import argparse
import gzip
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from encode_peers import CUDA, MAX_TOKENS, Report, padded_loop, sentence_transformers, timed
from torch.profiler import ProfilerActivity, profile
from transformers import AutoTokenizer, BertConfig, BertModel

from dpr.encoder.encode import GPU_TOKENS, Compute, TowerEncoder
from dpr.encoder.model import load_network
from dpr.encoder.padded import PaddedForward
from dpr.encoder.spec import TowerSpec, resolve
from dpr.encoder.tokens import TokenBatch, TowerTokenizer
from dpr.recipe import EncoderConfig

os.environ["TOKENIZERS_PARALLELISM"] = "true"  # for sentence-transformers' own tokenising
UNIT_ROWS = 50_000
SIDE = 8192


def matmul_tflops(report: Report) -> float:
    """The best of: ten products after three, either layout; sustained products are noted beside it."""
    a, b = (torch.randn(SIDE, SIDE, device=CUDA, dtype=torch.bfloat16) for _ in range(2))
    out = torch.empty_like(a)

    def rate(times: int, other: torch.Tensor) -> float:
        for _ in range(3):
            torch.mm(a, other, out=out)
        torch.cuda.synchronize()
        started = time.perf_counter()
        for _ in range(times):
            torch.mm(a, other, out=out)
        torch.cuda.synchronize()
        return times * 2 * SIDE**3 / (time.perf_counter() - started) / 1e12

    found = {}
    for name, other in (("row-major", b), ("transposed", b.t())):
        found[name] = max(rate(10, other) for _ in range(3) if not time.sleep(0.5))
    sustained = rate(2000, b)
    said = ", ".join(f"{value:.0f} with a {name} right side" for name, value in found.items())
    report.note(
        f"bf16 products of {SIDE}×{SIDE}×{SIDE} random values, TFLOP/s: {said} (best of three times ten, at rest "
        f"before); {sustained:.0f} sustained over 2000. The limit is the highest."
    )
    return max(found.values())


def flops(lengths_N: np.ndarray) -> float:
    """Of one passage, on average, in a whole forward pass of BERT-base: products and attention."""
    a_token = 2 * (4 * 768 * 768 + 2 * 768 * 3072)
    return float((12 * (a_token * lengths_N + 4 * 768 * lengths_N.astype(np.float64) ** 2)).mean())


def save_network(folder: Path, tokenizer: Path) -> None:
    """BERT-base with random weights: wider than at the start of training, so that vectors differ as trained ones do."""
    torch.manual_seed(0)
    body = BertModel(BertConfig(), add_pooling_layer=False)
    with torch.no_grad():
        for name, weight in body.named_parameters():
            if "LayerNorm.weight" in name:
                weight.copy_(1 + 0.2 * torch.randn_like(weight))
            elif weight.ndim == 1:
                weight.copy_(0.1 * torch.randn_like(weight))
            elif ".layer." in name:
                weight.mul_(2)
    body.save_pretrained(folder)
    AutoTokenizer.from_pretrained(tokenizer).save_pretrained(folder)


def tower_of(folder: Path, pooling: str) -> TowerSpec:
    return TowerSpec("random BERT-base", folder, "BertModel", "", pooling, False, "", MAX_TOKENS, "pair", True, 768)


def read_corpus(path: Path) -> tuple[list[str], list[str], list[str]]:
    """Ids, titles and texts."""
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        rows = [json.loads(line) for line in lines]
    return [row["_id"] for row in rows], [row.get("title") or "" for row in rows], [row["text"] for row in rows]


def units_of(tokens: TokenBatch, passages: int) -> Iterator[TokenBatch]:
    """`passages` passages in units, each a random draw."""
    rng = np.random.default_rng(0)
    for first in range(0, passages, UNIT_ROWS):
        yield tokens.select(rng.integers(0, len(tokens), min(UNIT_ROWS, passages - first)))


@contextmanager
def card_watched(report: Report) -> Iterator[None]:
    """Notes clock and power while something runs."""
    query = [
        "nvidia-smi",
        "--query-gpu=clocks.sm,power.draw,utilization.gpu",
        "--format=csv,noheader,nounits",
        "-lms",
        "500",
    ]
    with subprocess.Popen(query, stdout=subprocess.PIPE, text=True) as watcher:
        yield
        watcher.terminate()
        seen = [[float(x) for x in line.split(",")] for line in watcher.stdout or () if line.count(",") == 2]
    if seen:
        clock, power, busy = np.median(np.array(seen), axis=0)
        report.note(f"during the packed run: clock {clock:.0f} MHz, power {power:.0f} W, busy {busy:.0f}% (medians)")


def packed(report: Report, folder: Path, tokens: TokenBatch, passages: int) -> None:
    mean_tokens = float(tokens.lengths().mean())
    for pooling, note in (
        ("mean", "whole forward pass"),
        ("cls", "the last layer for first tokens only, as DPR needs"),
    ):
        encoder = TowerEncoder(tower_of(folder, pooling), Compute("bf16"))
        units = list(units_of(tokens, passages))
        encoder.encode(units[0])
        with card_watched(report):
            seconds = timed(lambda: [encoder.encode(unit) for unit in units])  # noqa: B023
        report.add(
            f"packed, {pooling} pooling ({note}), {GPU_TOKENS:,} tokens a batch", passages / seconds, mean_tokens
        )
        report.note(f"{pooling}: {passages:,} passages in {seconds:.1f} s; {encoder.choice}")
        if pooling == "mean":
            shares(report, encoder, units[0])


def shares(report: Report, encoder: TowerEncoder, unit: TokenBatch) -> None:
    """Where GPU time goes."""
    with profile(activities=[ProfilerActivity.CUDA]) as traced:
        encoder.encode(unit)
    spans = [event for event in traced.events() if event.device_type == torch.autograd.DeviceType.CUDA]
    total = sum(event.time_range.elapsed_us() for event in spans)
    wall = max(event.time_range.end for event in spans) - min(event.time_range.start for event in spans)
    names = {
        "gelubias": "product + GELU",
        "badd": "products + residual",
        "bias_T": "product to q, k, v",
        "_attend": "attention",
        "_add_norm": "bias + normalisation",
    }
    sums: dict[str, float] = {}
    for event in spans:
        kind = next((said for part, said in names.items() if part in event.name), "all else")
        sums[kind] = sums.get(kind, 0.0) + event.time_range.elapsed_us()
    said = ", ".join(f"{kind} {value / total:.3f}" for kind, value in sorted(sums.items(), key=lambda x: -x[1]))
    report.note(f"GPU time of one unit: {said}; kernels ran {total / wall:.3f} of the time from the first to the last")


def accuracy(report: Report, folder: Path, tokens: TokenBatch) -> None:
    rows = np.random.default_rng(1).choice(len(tokens), 512, replace=False)
    sample = tokens.select(rows)
    for pooling in ("mean", "cls", "max"):
        tower = tower_of(folder, pooling)
        found_ND = TowerEncoder(tower, Compute("bf16")).encode(sample).astype(np.float64)
        cosines = cosine(found_ND, exactly(tower, sample))
        report.note(
            f"{pooling} pooling, 512 passages, against transformers in fp32 (no tf32): least cosine "
            f"{cosines.min():.6f}, mean {cosines.mean():.6f}"
        )


def exactly(tower: TowerSpec, tokens: TokenBatch) -> np.ndarray:
    """Vectors of transformers' own forward pass in float32, padded."""
    torch.set_float32_matmul_precision("highest")
    forward = PaddedForward(load_network(tower).to(torch.float32, CUDA), tower, CUDA)
    vectors_ND = np.empty((len(tokens), tower.dim))
    with torch.inference_mode():
        for rows_B in forward.batches(tokens.lengths(), 65_536):
            vectors_ND[rows_B] = forward(tokens.select(rows_B)).numpy()
    return vectors_ND


def cosine(x_ND: np.ndarray, y_ND: np.ndarray) -> np.ndarray:
    found_N: np.ndarray = (x_ND * y_ND).sum(1) / np.linalg.norm(x_ND, axis=1) / np.linalg.norm(y_ND, axis=1)
    return found_N


def retrieval(report: Report, arguments: argparse.Namespace) -> None:
    """Cosines and top-20 answers of a trained model, packed bf16 beside fp32."""
    spec = resolve(EncoderConfig(model=str(arguments.real)))
    ids, titles, texts = read_corpus(arguments.corpus)
    with gzip.open(arguments.questions, "rt", encoding="utf-8") as lines:
        questions = {row["_id"]: row["text"] for row in map(json.loads, lines)}
    with gzip.open(arguments.qrels, "rt", encoding="utf-8") as lines:
        pairs = [line.split("\t")[:2] for line in list(lines)[1:]]
    number = {name: row for row, name in enumerate(ids)}
    tokenizer = TowerTokenizer(spec.passage)
    passages, asked = tokenizer.passages(titles, texts), tokenizer.questions([questions[name] for name, _ in pairs])
    wanted_Q = torch.tensor([number[name] for _, name in pairs], device=CUDA)
    encoder = TowerEncoder(spec.passage, Compute("bf16"))
    exact_ND, exact_QD = exactly(spec.passage, passages), exactly(spec.passage, asked)
    rounded_ND, rounded_QD = encoder.encode(passages), encoder.encode(asked, np.float32)
    cosines = np.concatenate([cosine(rounded_ND.astype(np.float64), exact_ND), cosine(rounded_QD, exact_QD)])
    hits = {}
    for name, x_ND, x_QD in (("fp32", exact_ND, exact_QD), ("packed bf16", rounded_ND, rounded_QD)):
        x_ND, x_QD = (torch.tensor(x, dtype=torch.float32, device=CUDA) for x in (x_ND, x_QD))
        top_QK = (x_QD @ x_ND.t()).topk(20).indices
        hits[name] = float((top_QK == wanted_Q[:, None]).any(1).float().mean())
    report.note(
        f"{arguments.real.name} (trained), {len(ids):,} passages and {len(pairs):,} questions: least cosine "
        f"{cosines.min():.6f}, mean {cosines.mean():.6f}; right passage among the first 20: "
        + ", ".join(f"{k} {v:.4f}" for k, v in hits.items())
    )


def write(report: Report, tokens: TokenBatch, path: Path) -> None:
    lengths_N, names = tokens.lengths(), ("torch", "triton", "transformers", "sentence-transformers", "numpy")
    lines = [
        f"# Encoding on one {torch.cuda.get_device_name()}",
        "",
        f"    python {' '.join(['benchmarks/encode_gpu.py', *(os.path.basename(x) for x in sys.argv[1:])])}",
        "",
        f"Python {platform.python_version()}, " + ", ".join(f"{name} {version(name)}" for name in names) + ".",
        f"BERT-base size, random weights; passages of {lengths_N.mean():.1f} tokens on average ({lengths_N.min()} to "
        f"{lengths_N.max()}), title and text as a pair. A whole forward pass is {flops(lengths_N) / 1e9:.2f} GFLOP "
        f"a passage: at the measured peak {report.limit:,.0f} passages/s is the limit.",
        "",
        "| way | passages/s | million tokens/s | share of the limit |",
        "|---|---:|---:|---:|",
        *report.rows,
        "",
        *report.notes,
        "",
    ]
    path.write_text("\n".join(lines), encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("--corpus", "--tokenizer", "--out"):
        parser.add_argument(name, type=Path, required=True)
    parser.add_argument("--passages", type=int, default=1_000_000)
    for name in ("--real", "--questions", "--qrels"):
        parser.add_argument(name, type=Path)
    arguments = parser.parse_args()
    report = Report()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        save_network(folder, arguments.tokenizer)
        _, titles, texts = read_corpus(arguments.corpus)
        tokens = TowerTokenizer(tower_of(folder, "cls")).passages(titles, texts)
        report.limit = matmul_tflops(report) * 1e12 / flops(tokens.lengths())
        accuracy(report, folder, tokens)
        if arguments.real:
            retrieval(report, arguments)
        packed(report, folder, tokens, arguments.passages)
        sentence_transformers(report, folder, tokens, [f"{a} {b}" for a, b in zip(titles, texts, strict=True)])
        padded_loop(report, folder, tokens)
        write(report, tokens, arguments.out)


if __name__ == "__main__":
    main()
