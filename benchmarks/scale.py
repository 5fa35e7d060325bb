"""How time and memory of each stage grow with the corpus: whole nights without a model, whose vectors come from hashes.

    python -m benchmarks.scale --passages 100000 1000000 10000000 --work /tmp/scale --out scale.md

Each size is a process of its own, the driver. It runs a first night, and a night after 1% of the passages changed, over
a store in a folder. The units of a stage run in a process of their own, so the kernel counts CPU time and memory of
each stage and of the driver apart. A passage has 12 words on average, drawn with Zipf's frequencies, and a vector of 16
components. All other code is that of `dpr run`; what a model adds is proportional to the passages (see the results of
encode.py). The exponent of a stage is the slope of log time over log passages. Corpus and store are removed after each
size; a size whose figures lie in WORK already is not run again.
"""

import argparse
import contextlib
import json
import os
import platform
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, field
from itertools import count, repeat
from multiprocessing import Pipe
from pathlib import Path
from typing import Any

import numpy as np
from ray import cloudpickle

from benchmarks.processor import processor_and_cores
from dpr.engine.executor import Cluster, LocalExecutor
from dpr.engine.stage import A, B, Work
from dpr.index.hardware import Hardware
from dpr.recipe import Recipe
from dpr.run_recipe import Outcome, run_recipe
from simulation.key_vectors import make_model, vectors_from_keys

DIM, WORDS, FILE_ROWS = 16, 12, 250_000
DRIVER = "driver"
CHANGED = 0.01
BLOCK = 50_000


@dataclass
class Night:
    """What one night took."""

    passages: int
    name: str
    seconds: float
    stages: dict[str, float] = field(default_factory=dict)
    """Seconds by stage."""
    cpu: dict[str, float] = field(default_factory=dict)
    """Seconds of CPU by stage, and of the driver."""
    peaks: dict[str, float] = field(default_factory=dict)
    """Megabytes by stage, and of the driver so far."""
    recall: float = 0.0


@dataclass
class Used:
    """What a process took."""

    cpu_seconds: float
    peak_megabytes: float

    @classmethod
    def so_far(cls) -> "Used":
        """Return what the calling process has taken, all its threads together."""
        used = resource.getrusage(resource.RUSAGE_SELF)
        return cls(used.ru_utime + used.ru_stime, used.ru_maxrss / 1e3)


class Shared:
    """A value that each process computes when it first needs it."""

    def __init__(self, make: Callable[..., Any], args: tuple[Any, ...]) -> None:
        self._make, self._args, self._made = make, args, False

    def __call__(self) -> Any:
        if not self._made:
            self._value, self._made = self._make(*self._args), True
        return self._value


class ForkingExecutor(LocalExecutor):
    """Runs the units of each stage in a process of its own, and sends results to the driver as they come.

    These processes are forked from one that was forked from the driver at the beginning: after FAISS has started its
    threads in a process, it hangs in the children of that process.
    """

    def __init__(self) -> None:
        self.used: dict[str, Used] = {}
        self._orders, self._answers = Pipe(), Pipe()
        self._parent = os.fork()
        if self._parent == 0:
            self._orders[0].close()  # so that the loop ends with the driver
            self._answers[0].close()
            with contextlib.suppress(EOFError):
                while order := self._orders[1].recv_bytes():
                    if os.fork() == 0:
                        os._exit(self._work(*cloudpickle.loads(order)))
                    os.wait()
            os._exit(0)

    def close(self) -> None:
        """End the process that stages are forked from."""
        self._orders[0].send_bytes(b"")
        os.waitpid(self._parent, 0)

    def hardware(self) -> Hardware:
        return Hardware()  # PyTorch is not loaded for it, as on Ray

    def cluster(self) -> Cluster:
        return Cluster(cpus=os.cpu_count() or 1, encoders=1, gpus_per_encoder=0.0, overlap=False)

    def share(self, make: Callable[..., Any], *args: Any) -> Callable[[], Any]:
        return Shared(make, args)

    def run(self, stage: str, work: Work[A, B], units: Sequence[A]) -> Iterator[B]:
        if not units:
            return
        self._orders[0].send_bytes(cloudpickle.dumps((stage, work, units)))
        while True:
            value = self._answers[0].recv()
            if isinstance(value, Used):
                self.used[stage] = value
                return
            if isinstance(value, Exception):
                raise value
            yield value

    def _work(self, stage: str, work: Work[A, B], units: Sequence[A]) -> int:
        try:
            for done in super().run(stage, work, units):
                self._answers[1].send(done)
            self._answers[1].send(Used.so_far())
        except Exception as error:
            self._answers[1].send(error)
        return 0


class Silent:
    """Progress that shows nothing."""

    def start(self, stage: str, total_rows: int, done_rows: int) -> None: ...

    def advance(self, rows: int, detail: str = "") -> None: ...

    def message(self, topic: str, text: str) -> None: ...

    def finish(self, summary: str) -> None: ...


def write_file(path: Path, number: int, rows: int, edited: int) -> None:
    """Write one file of the corpus as JSON lines; its first `edited` rows differ from those of other calls with 0."""
    rng = np.random.default_rng(number)
    vocabulary = np.array([f"w{n}" for n in range(50_000)], dtype=object)
    with path.open("w", encoding="ascii") as file:
        for start in range(0, rows, BLOCK):
            block = min(BLOCK, rows - start)
            lengths = rng.integers(WORDS // 2, WORDS + WORDS // 2, block).tolist()
            words = vocabulary[np.minimum(rng.zipf(1.3, sum(lengths)) - 1, len(vocabulary) - 1)].tolist()
            at, lines = 0, []
            for row, length in enumerate(lengths, start):
                new = " edited" if row < edited else ""
                text = " ".join(words[at : at + length])
                lines.append(f'{{"id": "p{number * FILE_ROWS + row}", "title": "", "text": "{text} {row}{new}"}}\n')
                at += length
            file.writelines(lines)


def measure(passages: int, work: Path) -> list[Night]:
    """Run both nights of one size, in this process."""
    corpus = work / "corpus"
    corpus.mkdir(parents=True)
    sizes = [min(FILE_ROWS, passages - first) for first in range(0, passages, FILE_ROWS)]
    with ProcessPoolExecutor() as pool:
        list(pool.map(write_file, (corpus / f"{n:04}.jsonl" for n in count()), count(), sizes, repeat(0)))
    make_model(work / "model", DIM)
    recipe = Recipe.model_validate(
        {
            "store": str(work / "store"),
            "corpus": {"path": str(corpus), "format": "jsonl"},
            "encoder": {"model": str(work / "model")},
            # vectors of hashes are spread evenly, and no index finds such neighbours well
            "gate": {"min_recall": 0.0},
        }
    )
    nights = [run_night(recipe, "first night", passages)]
    edited = sizes[: max(1, round(len(sizes) * CHANGED * 10))]  # of a tenth of them, of one at least
    with ProcessPoolExecutor() as pool:  # not in this process, whose memory is measured
        files = (corpus / f"{n:04}.jsonl" for n in count())
        list(pool.map(write_file, files, count(), edited, repeat(edited_rows(passages, sizes))))
    nights.append(run_night(recipe, "1% changed", passages))
    return nights


def edited_rows(passages: int, sizes: Sequence[int]) -> int:
    """Return how many rows of each edited file change, so that 1% of all do."""
    return round(passages * CHANGED / max(1, round(len(sizes) * CHANGED * 10)))


def run_night(recipe: Recipe, name: str, passages: int) -> Night:
    """Run one night, with its stages in children."""
    with vectors_from_keys(DIM):
        executor = ForkingExecutor()
        started, before = time.monotonic(), Used.so_far().cpu_seconds
        outcome: Outcome = run_recipe(recipe, executor, Silent())
        seconds, driver = time.monotonic() - started, Used.so_far()
        executor.close()
    assert outcome.report is not None
    assert outcome.snapshot.body.passages == passages
    cpu = {stage: used.cpu_seconds for stage, used in executor.used.items()}
    peaks = {stage: used.peak_megabytes for stage, used in executor.used.items()}
    return Night(
        passages,
        name,
        seconds,
        {stage.stage: stage.seconds for stage in outcome.report.stages},
        cpu | {DRIVER: driver.cpu_seconds - before},
        peaks | {DRIVER: driver.peak_megabytes},
        outcome.snapshot.body.gate.recall,
    )


def exponent(nights: Sequence[Night], seconds: Sequence[float]) -> float:
    """Return the slope of log time over log passages, fitted by least squares."""
    x, y = [np.log([night.passages for night in nights]), np.log(np.maximum(seconds, 1e-3))]
    return float(np.polyfit(x, y, 1)[0])


def table(nights: Sequence[Night]) -> list[str]:
    """Return a table of one kind of night over all sizes: seconds of CPU, exponents, seconds, and peaks."""
    sizes = [f"{night.passages:,}" for night in nights]
    heads = [*(f"CPU s, {n}" for n in sizes), "exponent", "of the last two", *(f"s, {n}" for n in sizes)]
    lines = [
        f"| | {' | '.join(heads)} | {' | '.join(f'MB, {n}' for n in sizes)} |",
        f"|---|{'---:|' * (3 * len(nights) + 2)}",
    ]

    def row(name: str, cpu: list[float], seconds: list[float], peaks: list[float]) -> str:
        fits = [exponent(nights, cpu), exponent(nights[-2:], cpu[-2:])]
        cells = [f"{value:.2f}" for value in (*cpu, *fits)] + [f"{value:.1f}" for value in seconds]
        return f"| {name} | {' | '.join([*cells, *(f'{peak:,.0f}' for peak in peaks)])} |"

    for name in (name for name in nights[-1].cpu if all(name in night.cpu for night in nights)):
        between = [night.seconds - sum(night.stages.values()) for night in nights]
        seconds = between if name == DRIVER else [night.stages[name] for night in nights]
        lines.append(row(name, [night.cpu[name] for night in nights], seconds, [n.peaks[name] for n in nights]))
    total = [sum(night.cpu.values()) for night in nights]
    return [*lines, row("all", total, [n.seconds for n in nights], [max(n.peaks.values()) for n in nights])]


def report(nights: Sequence[Night], command: str) -> str:
    """Return the Markdown of all nights."""
    lines = [
        "# Stages by size of the corpus, without a model",
        "",
        f"    {command}",
        "",
        f"{processor_and_cores()}. Python {platform.python_version()}. A passage has {WORDS} words on average and a "
        f"vector of {DIM} components, made from its hash. MB are the peaks that the kernel kept of each process. "
        "The exponents are those of CPU seconds, since other work used the machine.",
    ]
    for name in dict.fromkeys(night.name for night in nights):
        lines += ["", f"## {name}", "", *table([night for night in nights if night.name == name])]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--passages", type=int, nargs="+", default=[100_000, 1_000_000])
    parser.add_argument("--work", type=Path, required=True, help="folder for corpus and store; about 1 kB a passage")
    parser.add_argument("--out", type=Path, help="Markdown file for the result")
    parser.add_argument("--one", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        nights = measure(options.passages[0], options.work)
        options.one.write_text(json.dumps([asdict(night) for night in nights]), encoding="utf-8")
        return
    found: list[Night] = []
    options.work.mkdir(parents=True, exist_ok=True)
    for passages in options.passages:
        folder, result = options.work / str(passages), options.work / f"{passages}.json"
        command = [sys.executable, "-m", "benchmarks.scale", "--passages", str(passages), "--work", str(folder)]
        environment = os.environ | {"DPR_CACHE": str(options.work / "cache")}
        if not result.exists():  # else an earlier call has measured this size
            try:
                subprocess.run([*command, "--one", str(result)], env=environment, check=True)
            finally:
                shutil.rmtree(folder, ignore_errors=True)
        found += [Night(**night) for night in json.loads(result.read_text(encoding="utf-8"))]
        print(result.read_text(encoding="utf-8"), flush=True)
    sizes = " ".join(map(str, options.passages))
    text = report(found, f"python -m benchmarks.scale --passages {sizes} --work WORK")
    print(text)
    if options.out:
        options.out.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
