"""The tables and the picture of benchmarks/index.py, from what was measured and kept."""

import datetime
import json
import os
import platform
from collections.abc import Iterator, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from index_search import BY_QUESTION, FEWER_LISTS, Point
from processor import processor, processor_and_cores

TARGETS = (0.90, 0.95, 0.98, 0.99)
TICKS = (0.7, 0.8, 0.9, 0.95, 0.98, 0.99, 0.995, 1.0)
MIB = 2**20
PEERS = ("scann", "hnswlib", "usearch", "autofaiss")
OURS = ("IVF-PQ", "IVF-PQ FastScan", FEWER_LISTS, BY_QUESTION, "IVF-RaBitQ FastScan", "IVF-SQ8", "HNSW", "Flat")


def write_report(results: Path, out: Path) -> None:
    """Write the dated file and the picture of everything under `results`, and print the tables."""
    machine, slug = hardware()
    today = datetime.datetime.now(datetime.UTC).date()
    name = f"index_{slug}_{today}"
    lines = [
        f"# Index on {machine}",
        "",
        "    python benchmarks/index.py --data DATA --cache CACHE --peer-python PEERS/bin/python",
        "",
        f"Python {platform.python_version()}, faiss-cpu {version('faiss-cpu')}, numpy {version('numpy')}, ray "
        f"{version('ray')}, torch {version('torch')}. Vectors: 30,000 passages of SQuAD and MedQuAD encoded with "
        "MiniLM (384 dimensions), grown with noise of their neighbourhoods' covariance; questions are SQuAD's own. "
        "Recall is recall@20 against exact search.",
    ]
    for folder in sorted(results.iterdir(), key=lambda f: int(f.name)):
        found = {file.stem: json.loads(file.read_text(encoding="utf-8")) for file in folder.glob("*.json")}
        rows = int(folder.name)
        for section in (_building, _searching, _compression):
            lines += section(rows, found)
        points = list(all_points(found))
        if points:
            picture = f"{name}_{rows}.png"
            draw(points, rows, out / picture)
            lines += ["", f"![recall and speed]({picture})"]
    text = "\n".join([*lines, ""])
    print(text)
    (out / f"{name}.md").write_text(text, encoding="utf-8")


def hardware() -> tuple[str, str]:
    """The processor in words, and for a file name."""
    return processor_and_cores(), f"{processor().lower().replace(' ', '-')}-{os.cpu_count()}-cores"


def _building(rows: int, found: dict[str, Any]) -> Iterator[str]:
    if "single" not in found:
        return
    yield from ("", f"## Building, {rows:,} × 384", "")
    yield "| way | steps, seconds | total s | index MiB | peak MiB, largest process | all processes |"
    yield "|---|---|---:|---:|---:|---:|"
    names = {
        "ours": f"the product on Ray ({found['ours']['start of Ray']:.0f} s to start it not counted)",
        "single": "FAISS `train` + `add`, one process, as large a sample, no polysemous training either",
        "autofaiss-build": "autofaiss, given our index's size as memory",
    }
    for key, name in names.items():
        if key in found:
            steps = found[key]["seconds"]
            counted = (
                {s: v for s, v in steps.items() if "not counted" not in s} if isinstance(steps, dict) else {"": steps}
            )
            parts = ", ".join(f"{step} {seconds:.1f}" for step, seconds in counted.items() if step)
            peaks = " | ".join(f"{found[key]['peaks'][peak] / MIB:,.0f}" for peak in ("largest", "together"))
            yield f"| {name} | {parts} | {sum(counted.values()):.1f} | {found[key]['bytes'] / MIB:.0f} | {peaks} |"
        else:
            yield f"| {name} | not measured here | | | | |"
    merged = {key: value / MIB for key, value in found["merging"].items() if key not in ("peaks", "parts")}
    yield ""
    yield (
        f"Merging {found['merging']['parts']} parts held {merged['held']:.0f} MiB at its peak, beyond what the process "
        f"had before. Allowed: {merged['limit']:.0f} MiB (largest part {merged['largest part']:.1f}, three "
        f"buffers of {merged['buffer']:.0f}, two codebooks, 24 to spare); the index has {merged['bytes']:.0f}."
    )


def _searching(rows: int, found: dict[str, Any]) -> Iterator[str]:
    points = list(all_points(found))
    if not points:
        return
    yield from ("", f"## Searching, {rows:,} × 384, one question at a time, one thread", "")
    yield (
        "Queries a second of CPU time, of the fastest setting that reaches a recall; in brackets the best where none "
        "does. IVF-PQ FastScan is the rule's kind (PQ192x4, 96 bytes a code), IVF-PQ has codes of 8-bit numbers "
        "(PQ96, 96 bytes). "
        "With lists by question is how the product searches a million vectors; max_codes is FAISS's own early end."
    )
    yield ""
    yield f"| index | {' | '.join(f'{t:.2f}' for t in TARGETS)} | setting for 0.98 | mean ms | p99 ms |"
    yield f"|---|{'---:|' * len(TARGETS)}---|---:|---:|"
    for contender in dict.fromkeys(point.contender for point in points):
        yield _row(contender, [point for point in points if point.contender == contender])
    missing = [peer for peer in PEERS if peer not in found]
    if missing:
        yield from ("", f"Not measured at this size, or in no Python that was named: {', '.join(missing)}.")


def _row(contender: str, points: Sequence[Point]) -> str:
    best = max(point.recall for point in points)
    reaching = {
        t: min((p for p in points if p.recall >= t), key=lambda p: p.milliseconds, default=None) for t in TARGETS
    }
    cells = [f"{1000 / p.milliseconds:,.0f}" if p else f"({best:.3f})" for p in reaching.values()]
    chosen = reaching[0.98]
    fastest = f"{chosen.setting} | {chosen.milliseconds:.2f} | {chosen.p99:.2f}" if chosen else " | | "
    return f"| {contender} | {' | '.join(cells)} | {fastest} |"


def _compression(_: int, found: dict[str, Any]) -> Iterator[str]:
    if "accuracy" not in found:
        return
    accuracy = found["accuracy"]
    exact = accuracy["rows"][0]["top20"]
    yield from ("", "## Compression: SQuAD's 20,958 passages, 7,277 development questions", "")
    yield f"{accuracy['factory']}: 96 bytes for 1,536. The right passage is the one that the question was asked about."
    yield ""
    yield from ("| search | nprobe | re-scored | top-20 accuracy | lost, points |", "|---|---:|---:|---:|---:|")
    for row in accuracy["rows"]:
        lost = 100 * (exact - row["top20"])
        yield f"| {row['what']} | {row['nprobe'] or ''} | {row['rescore'] or ''} | {row['top20']:.4f} | {lost:.2f} |"


def all_points(found: dict[str, Any]) -> Iterator[Point]:
    """Ours and the peers'."""
    kinds = [point for name in sorted(found) if name.startswith("points-") for point in found[name]]
    theirs = [point for peer in PEERS for point in found.get(peer, {}).get("points", [])]
    yield from (Point(**one) for one in [*kinds, *theirs])


def frontier(points: Sequence[Point]) -> list[Point]:
    """Points that no other beats in both."""
    kept: list[Point] = []
    for point in sorted(points, key=lambda p: (p.milliseconds, -p.recall)):
        if not kept or point.recall > kept[-1].recall:
            kept.append(point)
    return kept


def draw(points: Sequence[Point], rows: int, file: Path) -> None:
    """Recall against queries a second: ours with full lines, peers with dashes."""
    figure, axes = plt.subplots(figsize=(11, 6), layout="constrained")
    for place, contender in enumerate(dict.fromkeys(point.contender for point in points)):
        line = frontier([point for point in points if point.contender == contender])
        ours = contender in OURS
        axes.plot(
            [point.recall for point in line],
            [1000 / point.milliseconds for point in line],
            marker="o" if ours else "s",
            markersize=4,
            linestyle="-" if ours else "--",
            color=plt.get_cmap("tab10")(place % 10),
            label=contender if ours else f"{contender} (peer)",
        )
    # the nearer to 1, the wider: what is missed counts
    axes.set_xscale("function", functions=(lambda r: -np.log10(1.001 - np.minimum(r, 1)), lambda v: 1.001 - 10.0**-v))
    axes.set_xticks(TICKS, [f"{tick:g}" for tick in TICKS])
    axes.set(yscale="log", xlabel="recall@20", ylabel="queries a second, one thread", xlim=(TICKS[0], 1.0))
    axes.set_title(f"{rows:,} × 384, one question at a time")
    axes.grid(which="both", alpha=0.3)
    axes.legend(loc="center left", bbox_to_anchor=(1, 0.5), fontsize=9)
    figure.savefig(file, dpi=130)
    plt.close(figure)
