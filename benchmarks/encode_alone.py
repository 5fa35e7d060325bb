"""The limit of the device, and the encoder alone on passages tokenised before: its rate, its time, its accuracy."""

import gzip
import json
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from encode_report import Report
from encode_subject import Subject
from torch.profiler import ProfilerActivity, profile

from dpr.encoder.encode import TowerEncoder
from dpr.encoder.model_files import read_json
from dpr.encoder.network import load_network
from dpr.encoder.padded import PaddedForward
from dpr.encoder.precision import multiplies_bf16
from dpr.encoder.tokens import TokenBatch, TowerTokenizer
from dpr.encoder.tower import TowerSpec

UNIT_ROWS = {"cuda": 50_000, "cpu": 3_000}
SAMPLE_MILLISECONDS = 200
SIDES = {"cuda": 8192, "cpu": 2048}


def synchronize() -> None:
    """Wait for a GPU, if there is one."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def timed(work: Callable[[], Any]) -> float:
    """Return the seconds that some work takes."""
    synchronize()
    started = time.perf_counter()
    work()
    synchronize()
    return time.perf_counter() - started


def matmul_tflops(report: Report, device: torch.device) -> float:
    """Measure the highest rate of ten matrix products after three, in both layouts; note that of many, too."""
    dtype, side = torch.bfloat16 if multiplies_bf16(device) else torch.float32, SIDES[device.type]
    a, b = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
    out = torch.empty_like(a)

    def rate(times: int, other: torch.Tensor) -> float:
        for _ in range(3):
            torch.mm(a, other, out=out)
        return times * 2 * side**3 / timed(lambda: [torch.mm(a, other, out=out) for _ in range(times)]) / 1e12

    found = {}
    for name, other in (("row-major", b), ("transposed", b.t())):
        found[name] = max(rate(10, other) for _ in range(3) if not time.sleep(0.5))
    sustained = rate(2000 if device.type == "cuda" else 50, b)
    rates = ", ".join(f"{value:.3g} with a {name} right side" for name, value in found.items())
    report.note(
        f"{str(dtype).removeprefix('torch.')} products of {side}×{side}×{side} random values, TFLOP/s: {rates} (best "
        f"of three times ten, each after a pause); {sustained:.3g} sustained. The limit is the highest of these."
    )
    return max(found.values())


def flops(tower: TowerSpec, lengths_N: np.ndarray) -> float:
    """Return the operations of one passage, on average, in a forward pass of a BERT-like network."""
    config = read_json(tower.folder / "config.json", tower.reference)
    size, layers = config["hidden_size"], config["num_hidden_layers"]
    flops_per_token = 2 * (4 * size * size + 2 * size * config["intermediate_size"])
    flops_per_pair = 4 * size  # attention: a score of two tokens, and the sum of values that it weights
    return float((layers * (flops_per_token * lengths_N + flops_per_pair * lengths_N.astype(np.float64) ** 2)).mean())


@contextmanager
def cards_watched(report: Report, what: str) -> Iterator[list[float]]:
    """Note clock, power and load of each GPU while something runs; do nothing without a GPU.

    The list that it yields holds, at the end, the seconds from the first GPU's first work to the last one's last.
    """
    busy_seconds: list[float] = []
    if not torch.cuda.is_available():
        yield busy_seconds
        return
    fields = "--query-gpu=index,clocks.sm,power.draw,utilization.gpu"
    command = ["nvidia-smi", fields, "--format=csv,noheader,nounits", "-lms", str(SAMPLE_MILLISECONDS)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as watcher:
        try:
            yield busy_seconds
        finally:
            watcher.terminate()
            samples = [[float(x) for x in line.split(",")] for line in watcher.stdout or () if line.count(",") == 3]
    spans = []
    for index in sorted({sample[0] for sample in samples}):
        of_card = np.array([sample[1:] for sample in samples if sample[0] == index])
        clock, power, _ = np.median(of_card, axis=0)
        # samples that begin five busy ones, so that a short test of the device does not count
        runs = np.flatnonzero(np.convolve(of_card[:, 2] >= 50, np.ones(5), "valid") == 5)
        share = ""
        if len(runs):
            spans.append((runs[0], runs[-1] + 5))
            share = f", {of_card[runs[0] : runs[-1] + 5, 2].mean():.0f}% from its first work to its last"
        report.note(
            f"{what}, GPU {index:.0f}: clock {clock:.0f} MHz and power {power:.0f} W (medians), busy "
            f"{of_card[:, 2].mean():.0f}% of the time on average{share}"
        )
    if spans:
        busy_seconds.append((max(b for _, b in spans) - min(a for a, _ in spans)) * SAMPLE_MILLISECONDS / 1000)


def alone(report: Report, subject: Subject, passages: int, pooling: str | None = None, when: str = "") -> float:
    """Measure passages a second; also with another `pooling`, or at another time, which the report calls `when`."""
    tower = replace(subject.tower, pooling=pooling or subject.tower.pooling)
    encoder = TowerEncoder(tower, subject.compute)
    units = list(subject.units(passages, UNIT_ROWS[subject.device.type]))
    encoder.encode(units[0])
    what = f"encoder alone{when}, tokenised before, {tower.pooling} pooling"
    with cards_watched(report, what):
        seconds = timed(lambda: [encoder.encode(unit) for unit in units])
    rate = passages / seconds
    report.alone = report.alone or rate
    report.add(what, rate)
    report.note(f"{what}: {passages:,} passages in {seconds:.1f} s; {encoder.choice}")
    return rate


def shares(report: Report, subject: Subject) -> None:
    """Note the shares of the kernels in GPU time."""
    encoder = TowerEncoder(subject.tower, subject.compute)
    unit = next(subject.units(UNIT_ROWS["cuda"], UNIT_ROWS["cuda"]))
    encoder.encode(unit)
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
        kind = next((name for part, name in names.items() if part in event.name), "all else")
        sums[kind] = sums.get(kind, 0.0) + event.time_range.elapsed_us()
    parts = ", ".join(f"{kind} {value / total:.3f}" for kind, value in sorted(sums.items(), key=lambda x: -x[1]))
    report.note(f"GPU time of one unit: {parts}; kernels ran {total / wall:.3f} of the time from the first to the last")


def accuracy(report: Report, subject: Subject) -> None:
    """Compare the encoder's vectors with transformers' own in float32."""
    sample = subject.sample(256)
    found_ND = TowerEncoder(subject.tower, subject.compute).encode(sample).astype(np.float64)
    cosines = cosine(found_ND, exactly(subject.tower, sample, subject.device))
    report.note(
        f"256 passages against transformers in fp32: lowest cosine {cosines.min():.6f}, mean {cosines.mean():.6f}"
    )


def exactly(tower: TowerSpec, tokens: TokenBatch, device: torch.device) -> np.ndarray:
    """Return the vectors of transformers' own forward pass in float32 (no tf32), padded."""
    torch.set_float32_matmul_precision("highest")
    forward = PaddedForward(load_network(tower).to(torch.float32, device), tower, device)
    vectors_ND = np.empty((len(tokens), tower.dim))
    with torch.inference_mode():
        for rows_B in forward.batches(tokens.lengths(), 65_536 if device.type == "cuda" else 1_024):
            vectors_ND[rows_B] = forward(tokens.select(rows_B)).numpy()
    return vectors_ND


def cosine(x_ND: np.ndarray, y_ND: np.ndarray) -> np.ndarray:
    """Return the cosine of each row of one with the same row of the other."""
    found_N: np.ndarray = (x_ND * y_ND).sum(1) / np.linalg.norm(x_ND, axis=1) / np.linalg.norm(y_ND, axis=1)
    return found_N


def retrieval(report: Report, subject: Subject, questions: Path, qrels: Path) -> None:
    """Compare cosines and top-20 answers of a trained model, as encoded here, with those in fp32."""
    with gzip.open(questions, "rt", encoding="utf-8") as lines:
        texts = {row["_id"]: row["text"] for row in map(json.loads, lines)}
    with gzip.open(qrels, "rt", encoding="utf-8") as lines:
        pairs = [line.split("\t")[:2] for line in list(lines)[1:]]
    number = {name: row for row, name in enumerate(subject.passages["id"].to_pylist())}
    queries = TowerTokenizer(subject.tower).questions([texts[name] for name, _ in pairs])
    wanted_Q = torch.tensor([number[name] for _, name in pairs])
    encoder = TowerEncoder(subject.tower, subject.compute)
    exact = [exactly(subject.tower, tokens, subject.device) for tokens in (subject.tokens, queries)]
    found = [encoder.encode(subject.tokens), encoder.encode(queries, np.float32)]
    cosines = np.concatenate([cosine(a.astype(np.float64), b) for a, b in zip(found, exact, strict=True)])
    hits = {}
    for name, vectors in (("fp32", exact), ("as encoded here", found)):
        x_ND, x_QD = (torch.tensor(x, dtype=torch.float32, device=subject.device) for x in vectors)
        top_QK = (x_QD @ x_ND.t()).topk(20).indices.cpu()
        hits[name] = float((top_QK == wanted_Q[:, None]).any(1).float().mean())
    report.note(
        f"{len(number):,} passages and {len(pairs):,} questions: lowest cosine {cosines.min():.6f}, mean "
        f"{cosines.mean():.6f}; right passage among the first 20: " + ", ".join(f"{k} {v:.4f}" for k, v in hits.items())
    )
