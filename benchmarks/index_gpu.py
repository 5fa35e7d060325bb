"""An index of 21 million × 768 on one machine with GPUs: sample, train, build, merge, verify, from segments on disk.

    PYTHONPATH=. python benchmarks/index_gpu.py --folder FOLDER --out benchmarks/results/index_gpu.md

FOLDER gets segments of made-up vectors (32 GB; benchmarks/index_gpu_data.py), which is not counted. Then the stages of
the product run through Ray, as in a nightly run. Recall@20 against exact search is measured with questions that are
distributed otherwise than the vectors. The result is written again after each stage. Without a GPU, give fewer --rows.
"""

import argparse
import os
import platform
import re
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path

import torch
from index_gpu_clock import ClockedExecutor, clocks
from index_gpu_data import Corpus, make_segments
from index_gpu_recall import recall_table
from processor import processor
from transformers import BertConfig, BertModel, BertTokenizerFast

from dpr.formats import layout
from dpr.formats.manifest import SegmentEntry
from dpr.index.choose import IndexPlan
from dpr.recipe import CorpusConfig, EncoderConfig, Recipe, Resources
from dpr.run import Plan, Run
from dpr.stages.build import build
from dpr.stages.drift import keep_or_train
from dpr.stages.merge import merge_index
from dpr.stages.train import index_context
from ray_jobs.connect import connected
from ray_jobs.placement import CODERS_PER_GPU

PAPER_SECONDS = 8.5 * 3600
"""Karpukhin et al. 2020, section 5.4: 21 million passages, FAISS on one server."""


@dataclass
class Report:
    """The result file."""

    path: Path
    about: list[str]
    rows: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    total_seconds: float = 0.0

    def add(self, stage: str, predicted: float, measured: float, inside: str) -> None:
        """A stage, in seconds."""
        self.total_seconds += measured
        self.rows.append(f"| {stage} | {predicted:.1f} | {measured:.1f} | {inside} |")
        self._write(self.rows[-1])

    def note(self, text: str) -> None:
        """A paragraph or a table."""
        self.notes.append(text)
        self._write(text)

    def _write(self, new: str) -> None:
        times = PAPER_SECONDS / max(self.total_seconds, 1e-9)
        paper = f"the paper: {PAPER_SECONDS:,.0f} s for 21 million, {times:,.0f} times as long"
        total = f"| **all** | | **{self.total_seconds:.1f}** | {paper} |"
        head = ["| stage | predicted, s | measured, s | inside |", "|---|---|---|---|"]
        parts = [*self.about, "\n".join([*head, *self.rows, total]), *self.notes]
        self.path.write_text("\n\n".join(parts) + "\n")
        print(new, flush=True)


@dataclass(frozen=True)
class Machine:
    """What the arithmetic is done with; rates are what one core or one GPU was seen to do elsewhere."""

    cores: int
    gpus: int
    read_values: float = 4e8
    """float16 values a core reads and copies in a second (benchmarks/results, log)."""
    sha_bytes: float = 1.5e9
    gpu_flops: float = 45e12
    """float32 products without TF32: 67e12 at best."""
    gpu_bytes: float = 2.5e12
    cpu_flops: float = 5e10
    """A core, float32."""

    def flops(self, number: float, gpus: int) -> float:
        """Seconds for products of that many operations on so many GPUs, or on all cores."""
        return number / (self.gpu_flops * gpus if self.gpus else self.cpu_flops * self.cores)

    def scores(self, number: float, gpus: int) -> float:
        """Seconds to write and read that many float32 scores."""
        return 8 * number / (self.gpu_bytes * gpus if self.gpus else 5e9 * self.cores)


def predicted(machine: Machine, plan: IndexPlan) -> dict[str, float]:
    """Seconds of each stage by arithmetic."""
    lists, numbers, bits = map(int, re.findall(r"\d+", plan.factory))  # IVF16384,PQ384x4
    values, points = plan.rows * plan.dim, plan.train_rows
    sample = values / machine.read_values / min(machine.cores, 32)
    clusters = 10 * (machine.flops(2 * points * lists * plan.dim, 1) + machine.scores(points * lists, 1))
    code = 25 * machine.scores(min(points, 2**bits * 256) * numbers * 2**bits, 1)
    assign = machine.flops(2 * values * lists, machine.gpus) + machine.scores(plan.rows * lists, machine.gpus)
    encode = machine.scores(plan.rows * numbers * 2**bits, machine.gpus)
    processes = min(machine.cores, max(1, machine.gpus) * CODERS_PER_GPU) if machine.gpus else machine.cores
    parts_bytes = plan.rows * (numbers * bits // 8 + 4)
    host = (
        values / machine.read_values + (2 * values + parts_bytes) / machine.sha_bytes + 2 * parts_bytes / 1e9
    ) / processes
    index_bytes = plan.rows * plan.bytes_per_vector
    return {
        "train": sample + clusters + code + 10,
        "build": max(host, assign + encode) + 10,
        "merge": index_bytes * (2 / machine.sha_bytes + 1 / 0.4e9 + 2 / 1e9) + 5,
    }


def about(rows: int, dim: int) -> list[str]:
    cards = [torch.cuda.get_device_name(card) for card in range(torch.cuda.device_count())]
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    versions = ", ".join(f"{name} {version(name)}" for name in ("torch", "faiss-cpu", "ray", "pyarrow", "numpy"))
    return [
        f"# Index of {rows:,} × {dim}, from segments to a verified serving index",
        f"{time.strftime('%Y-%m-%d')}. {', '.join(cards) or 'No GPU'}; {processor()}, "
        f"{os.cpu_count()} cores, {memory:.0f} GiB; Python {platform.python_version()}, {versions}. "
        "Made by `benchmarks/index_gpu.py`; made-up vectors (benchmarks/index_gpu_data.py).",
        "Predicted: by arithmetic, before the run, with the rates in `Machine`. Inside: seconds of functions; with "
        "several processes the sum over all of them.",
    ]


class Lines:
    """Progress as lines."""

    def start(self, stage: str, total_rows: int, done_rows: int) -> None:  # noqa: ARG002
        print(f"{stage}: {total_rows:,} rows", flush=True)

    def advance(self, rows: int, detail: str = "") -> None:
        pass

    def message(self, topic: str, text: str) -> None:
        print(f"{topic}: {text}", flush=True)

    def finish(self, summary: str) -> None:
        print(summary, flush=True)


def open_run(arguments: argparse.Namespace, executor: ClockedExecutor) -> Run:
    """A run over a store without snapshot, of a random encoder of the right width; nothing is encoded."""
    folder, encoder = arguments.folder, arguments.folder / "encoder"
    (folder / "corpus.jsonl").write_text('{"id": "p", "title": "", "text": "a"}\n')
    encoder.mkdir()
    (encoder / "vocab.txt").write_text("[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\na\n")
    BertTokenizerFast(vocab=str(encoder / "vocab.txt"), model_max_length=64).save_pretrained(encoder)
    body = BertConfig(vocab_size=6, hidden_size=arguments.dim, num_hidden_layers=1, num_attention_heads=1)
    BertModel(body, add_pooling_layer=False).save_pretrained(encoder)
    recipe = Recipe(
        store=str(folder / "store"),
        corpus=CorpusConfig(path=str(folder / "corpus.jsonl"), format="jsonl"),
        encoder=EncoderConfig(model=str(encoder), pooling="cls"),
        resources=Resources(segment_rows=arguments.segment_rows),
    )
    return Run(Plan.of(recipe), executor, Lines())


def inside(folder: Path, stage: str) -> tuple[str, int]:
    seconds, peak_bytes = clocks(folder, stage)
    named = [f"{name.strip('_')} {value:.1f}" for name, value in seconds.items() if value >= 0.05]
    return ", ".join(named), peak_bytes


@contextmanager
def clock() -> Iterator[list[float]]:
    seconds: list[float] = []
    started = time.perf_counter()
    yield seconds
    seconds.append(time.perf_counter() - started)


def run_stages(run: Run, segments: list[SegmentEntry], report: Report, clocked: Path) -> tuple[Path, int]:
    """Train, build, merge and verify, each a row of the table. Returns the index, and the peak bytes of merging it."""
    machine = Machine(os.cpu_count() or 1, torch.cuda.device_count())
    context = index_context(run, segments, None)
    with clock() as seconds:
        codebook, choice = keep_or_train(run, context)
    expected = predicted(machine, choice.plan)
    report.note("The plan:\n\n" + "\n".join(f"- {reason}" for reason in choice.plan.reasons))
    report.add("sample and train", expected["train"], seconds[0], inside(clocked, "train")[0])
    with clock() as seconds:
        parts = build(run, segments, codebook, choice)
    report.add("build parts (assign, encode)", expected["build"], seconds[0], inside(clocked, "build")[0])
    with clock() as seconds:
        merge_index(run, context, codebook, choice, parts)
    functions, peak_bytes = inside(clocked, "merge")
    report.add("merge and verify", expected["merge"], seconds[0], functions)
    (index,) = Path(run.recipe.store, layout.INDEXES).rglob("*.faiss")
    size_bytes = index.stat().st_size
    report.note(
        f"The merging process held at most {peak_bytes / 1e9:.2f} GB of memory of its own; the index has "
        f"{size_bytes / 1e9:.2f} GB ({choice.plan.factory}, quantisation error {codebook.quantisation_error:.4f})."
    )
    return index, peak_bytes


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, help="an empty folder with room for all (60 GB); default: a new one")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--rows", type=int, default=21_000_000)
    parser.add_argument("--dim", type=int, default=768)
    parser.add_argument("--segment-rows", type=int, default=50_000)
    parser.add_argument("--questions", type=int, default=200)
    parser.add_argument("--writers", type=int, default=os.cpu_count() or 1, help="processes that make the segments")
    arguments = parser.parse_args()
    arguments.folder = arguments.folder or Path(tempfile.mkdtemp())
    clocked = arguments.folder / "clocks"
    for needed in (clocked, arguments.folder / "tmp", arguments.out.parent):
        needed.mkdir(parents=True, exist_ok=True)
    os.environ["TMPDIR"] = tempfile.tempdir = str(arguments.folder / "tmp")
    os.environ["PYTHONPATH"] = str(Path(__file__).parent)  # workers import the clock from there
    report = Report(arguments.out, about(arguments.rows, arguments.dim))
    started = time.perf_counter()
    with connected():
        run = open_run(arguments, ClockedExecutor(Resources(segment_rows=arguments.segment_rows), clocked))
        corpus = Corpus(run.recipe.store, run.spec.encoder_id, arguments.rows, arguments.dim, arguments.segment_rows)
        segments, seconds = make_segments(corpus, arguments.writers)
        df = subprocess.run(["df", "--output=fstype", arguments.folder], capture_output=True, text=True, check=True)
        size_bytes = sum(entry.object.size_bytes for entry in segments)
        report.note(
            f"{len(segments)} segments of {arguments.segment_rows:,} rows, {size_bytes / 1e9:.1f} GB on "
            f"{df.stdout.split()[-1]}, made and flushed in {seconds:.0f} s (not counted) just before, so in "
            "the page cache as far as memory allows."
        )
        index, peak_bytes = run_stages(run, segments, report, clocked)
        report.note(recall_table(run, segments, index, arguments.questions))
    report.note(f"Everything, made-up vectors and recall included, took {time.perf_counter() - started:.0f} s.")
    # a small index is smaller than the process without it
    assert index.stat().st_size < 2e9 or peak_bytes < index.stat().st_size / 2, "merging holds the index in memory"


if __name__ == "__main__":
    main()
