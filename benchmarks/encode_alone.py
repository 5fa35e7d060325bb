"""The device's limit, and the encoder alone on passages tokenised beforehand: rate, where time goes, accuracy."""

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

from dpr.encoder.encode import Compute, TowerEncoder
from dpr.encoder.model_files import read_json
from dpr.encoder.network import load_network
from dpr.encoder.padded import PaddedForward
from dpr.encoder.precision import multiplies_bf16
from dpr.encoder.spec import TowerSpec
from dpr.encoder.tokens import TokenBatch, TowerTokenizer

UNIT_ROWS = {"cuda": 50_000, "cpu": 3_000}
SAMPLE_MILLISECONDS = 200
SIDES = {"cuda": 8192, "cpu": 2048}


def synchronize() -> None:
    """Wait for a GPU, if there is one."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def timed(work: Callable[[], Any]) -> float:
    """Seconds."""
    synchronize()
    started = time.perf_counter()
    work()
    synchronize()
    return time.perf_counter() - started


def matmul_tflops(report: Report, device: torch.device) -> float:
    """The best of: ten products after three, either layout; sustained products are noted beside it."""
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
    said = ", ".join(f"{value:.3g} with a {name} right side" for name, value in found.items())
    report.note(
        f"{str(dtype).removeprefix('torch.')} products of {side}×{side}×{side} random values, TFLOP/s: {said} (best of "
        f"three times ten, at rest before); {sustained:.3g} sustained. The limit is the highest."
    )
    return max(found.values())


def flops(tower: TowerSpec, lengths_N: np.ndarray) -> float:
    """Of one passage, on average, in a whole forward pass of a BERT-like network: products and attention."""
    config = read_json(tower.folder / "config.json", tower.reference)
    size, layers = config["hidden_size"], config["num_hidden_layers"]
    a_token = 2 * (4 * size * size + 2 * size * config["intermediate_size"])
    return float((layers * (a_token * lengths_N + 4 * size * lengths_N.astype(np.float64) ** 2)).mean())


@contextmanager
def cards_watched(report: Report, what: str) -> Iterator[list[float]]:
    """Notes clock, power and load of each GPU while something runs; nothing without a GPU.

    What it yields gets, at the end, the seconds from the first time that any GPU computed for a while to the last.
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
            seen = [[float(x) for x in line.split(",")] for line in watcher.stdout or () if line.count(",") == 3]
    spans = []
    for index in sorted({line[0] for line in seen}):
        mine = np.array([line[1:] for line in seen if line[0] == index])
        clock, power, _ = np.median(mine, axis=0)
        # samples that begin five busy ones, so that trying the device out does not count
        runs = np.flatnonzero(np.convolve(mine[:, 2] >= 50, np.ones(5), "valid") == 5)
        share = ""
        if len(runs):
            spans.append((runs[0], runs[-1] + 5))
            share = f", {mine[runs[0] : runs[-1] + 5, 2].mean():.0f}% from its first work to its last"
        report.note(
            f"{what}, GPU {index:.0f}: clock {clock:.0f} MHz and power {power:.0f} W (medians), busy "
            f"{mine[:, 2].mean():.0f}% of the time on average{share}"
        )
    if spans:
        busy_seconds.append((max(b for _, b in spans) - min(a for a, _ in spans)) * SAMPLE_MILLISECONDS / 1000)


def alone(report: Report, subject: Subject, passages: int, pooling: str | None = None, when: str = "") -> float:
    """Passages a second; with another `pooling` than the tower's own too, or again at another time, told as `when`."""
    tower = replace(subject.tower, pooling=pooling or subject.tower.pooling)
    encoder = TowerEncoder(tower, Compute(device=subject.device.type))
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
    """Where GPU time goes."""
    encoder = TowerEncoder(subject.tower, Compute(device="cuda"))
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
        kind = next((said for part, said in names.items() if part in event.name), "all else")
        sums[kind] = sums.get(kind, 0.0) + event.time_range.elapsed_us()
    said = ", ".join(f"{kind} {value / total:.3f}" for kind, value in sorted(sums.items(), key=lambda x: -x[1]))
    report.note(f"GPU time of one unit: {said}; kernels ran {total / wall:.3f} of the time from the first to the last")


def accuracy(report: Report, subject: Subject) -> None:
    """The encoder's vectors beside transformers' own in float32."""
    sample = subject.sample(256)
    found_ND = TowerEncoder(subject.tower, Compute(device=subject.device.type)).encode(sample).astype(np.float64)
    cosines = cosine(found_ND, exactly(subject.tower, sample, subject.device))
    report.note(
        f"256 passages against transformers in fp32: least cosine {cosines.min():.6f}, mean {cosines.mean():.6f}"
    )


def exactly(tower: TowerSpec, tokens: TokenBatch, device: torch.device) -> np.ndarray:
    """Vectors of transformers' own forward pass in float32 (no tf32), padded."""
    torch.set_float32_matmul_precision("highest")
    forward = PaddedForward(load_network(tower).to(torch.float32, device), tower, device)
    vectors_ND = np.empty((len(tokens), tower.dim))
    with torch.inference_mode():
        for rows_B in forward.batches(tokens.lengths(), 65_536 if device.type == "cuda" else 1_024):
            vectors_ND[rows_B] = forward(tokens.select(rows_B)).numpy()
    return vectors_ND


def cosine(x_ND: np.ndarray, y_ND: np.ndarray) -> np.ndarray:
    """Of each row."""
    found_N: np.ndarray = (x_ND * y_ND).sum(1) / np.linalg.norm(x_ND, axis=1) / np.linalg.norm(y_ND, axis=1)
    return found_N


def retrieval(report: Report, subject: Subject, questions: Path, qrels: Path) -> None:
    """Cosines and top-20 answers of a trained model, as encoded here beside fp32."""
    with gzip.open(questions, "rt", encoding="utf-8") as lines:
        asked = {row["_id"]: row["text"] for row in map(json.loads, lines)}
    with gzip.open(qrels, "rt", encoding="utf-8") as lines:
        pairs = [line.split("\t")[:2] for line in list(lines)[1:]]
    number = {name: row for row, name in enumerate(subject.passages["id"].to_pylist())}
    queries = TowerTokenizer(subject.tower).questions([asked[name] for name, _ in pairs])
    wanted_Q = torch.tensor([number[name] for _, name in pairs])
    encoder = TowerEncoder(subject.tower, Compute(device=subject.device.type))
    exact = [exactly(subject.tower, tokens, subject.device) for tokens in (subject.tokens, queries)]
    found = [encoder.encode(subject.tokens), encoder.encode(queries, np.float32)]
    cosines = np.concatenate([cosine(a.astype(np.float64), b) for a, b in zip(found, exact, strict=True)])
    hits = {}
    for name, vectors in (("fp32", exact), ("as encoded here", found)):
        x_ND, x_QD = (torch.tensor(x, dtype=torch.float32, device=subject.device) for x in vectors)
        top_QK = (x_QD @ x_ND.t()).topk(20).indices.cpu()
        hits[name] = float((top_QK == wanted_Q[:, None]).any(1).float().mean())
    report.note(
        f"{len(number):,} passages and {len(pairs):,} questions: least cosine {cosines.min():.6f}, mean "
        f"{cosines.mean():.6f}; right passage among the first 20: " + ", ".join(f"{k} {v:.4f}" for k, v in hits.items())
    )
