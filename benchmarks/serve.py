"""The service beside a hand-written server and the floor: latency, requests a second, errors and memory.

    PYTHONPATH=. python benchmarks/serve.py --data DATA --work WORK

DATA is a collection in BEIR's layout, such as MedQuAD. WORK keeps its store, so that a second start embeds nothing. The
same load generator, in a process of its own, asks both servers in turn for the ten best passages by vectors. A replica
and clients share the machine.
"""

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import httpx
import numpy as np

from benchmarks.hybrid import snapshot_of
from benchmarks.index_report import hardware
from benchmarks.processes import with_descendants
from benchmarks.serve_load import K
from dpr.evaluate.text_files import read_lines
from dpr.formats.manifest import Snapshot
from dpr.search.retrieve import question_tower
from tests.services.endpoint import free_ports

CLIENTS = (1, 4, 16, 64)
START_SECONDS = 120.0
REPEATED = 500
"""Different questions of the last measurement, in which the same ones are asked again and again."""
SERVICE, PEER = "dpr serve", "FastAPI + sentence-transformers + FAISS"
SUFFIXES = ("", "please", "now", "exactly", "in short")
"""What makes different questions of one: enough that no answer comes from a cache."""


@dataclass(frozen=True)
class Measured:
    """One server under one number of clients."""

    server: str
    clients: str
    p50_ms: float
    p99_ms: float
    per_second: float
    errors: Sequence[str]


@dataclass(frozen=True)
class Resident:
    """Memory of a server after all measurements, in MB: RSS counts shared pages whole, PSS each sharer's part."""

    server: str
    start_seconds: float
    answering: tuple[float, float]
    """RSS and PSS of the process that answers."""
    all: tuple[float, float]
    """Of all processes."""


class Bench:
    """A store, and the questions that clients ask."""

    def __init__(self, options: argparse.Namespace, snapshot: Snapshot) -> None:
        self.store, self._seconds = options.work / "store", options.seconds
        self._model = question_tower(snapshot, None).folder
        lines = read_lines(str(options.data / "queries.jsonl.gz"))
        texts = sorted({" ".join(json.loads(line)["text"].split()) for _, line in lines})
        np.random.default_rng(7).shuffle(texts)
        self.questions, self.repeated = options.work / "questions.txt", options.work / "repeated.txt"
        self.questions.write_text("\n".join(f"{text} {end}" for end in SUFFIXES for text in texts), encoding="utf-8")
        self.repeated.write_text("\n".join(texts[:REPEATED]), encoding="utf-8")

    def command(self, server: str, port: int) -> list[str]:
        """Return how a server is started."""
        if server == SERVICE:
            return [sys.executable, "-m", "ray_jobs.cli", "serve", str(self.store), "--port", str(port)]
        (segments,) = (self.store / "segments").iterdir()
        return [sys.executable, "benchmarks/serve_peer.py", str(port), str(self._model), str(segments)]

    def measure(self, server: str, port: int, clients: int, questions: Path, name: str = "") -> Measured:
        """Let clients ask."""
        command = ["benchmarks/serve_load.py", str(port), str(questions), str(clients), str(self._seconds)]
        found = json.loads(output_of(command))
        measured = Measured(server, name or str(clients), **found)
        print(measured, flush=True)
        return measured


def main() -> None:
    """Measure, print and write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--seconds", type=float, default=8.0, help="of each measurement")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    snapshot, _ = snapshot_of(options.data, options.work / "store")
    bench = Bench(options, snapshot)
    floor: dict[str, float] = json.loads(
        output_of(["benchmarks/serve_floor.py", str(bench.store), str(bench.questions)])
    )
    measured, memory = [], []
    for server in (SERVICE, PEER):
        (port,) = free_ports(1)
        began = time.monotonic()
        with running(bench.command(server, port), port) as process:
            start_seconds = time.monotonic() - began
            measured += [bench.measure(server, port, clients, bench.questions) for clients in CLIENTS]
            if server == SERVICE:
                measured.append(bench.measure(server, port, CLIENTS[-1], bench.repeated, "64, the same questions"))
            all_of = list(with_descendants(process.pid))
            answering = [pid for pid in all_of if "ServeReplica:search" in command_of(pid)] or [process.pid]
            memory.append(Resident(server, start_seconds, resident(answering), resident(all_of)))
    processor, slug = hardware()
    text = "\n".join([*head(processor, snapshot, floor), *tables(measured, memory)]) + "\n"
    print(text)
    out = options.out or Path(__file__).parent / "results" / f"serve_{slug}_{datetime.now(UTC):%Y-%m-%d}.md"
    out.write_text(text, encoding="utf-8")


@contextmanager
def running(command: list[str], port: int) -> Iterator[subprocess.Popen[bytes]]:
    """Start a server, wait until it answers, and stop it with the block."""
    give_up = time.monotonic() + START_SECONDS
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as process:
        try:
            while not answers(port):
                if process.poll() is not None or time.monotonic() > give_up:
                    raise SystemExit(f"{' '.join(command)} did not start")
                time.sleep(0.05)
            yield process
        finally:
            process.terminate()


def answers(port: int) -> bool:
    """Tell whether a question is answered."""
    try:
        return httpx.post(f"http://127.0.0.1:{port}/v1/search", json={"query": "ready?"}, timeout=60).is_success
    except httpx.HTTPError:
        return False


def output_of(command: list[str]) -> str:
    """Return what a script prints."""
    return subprocess.run([sys.executable, *command], check=True, stdout=subprocess.PIPE, text=True).stdout


def command_of(pid: int) -> str:
    """Return the command of a process, empty if it has ended."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_text(encoding="utf-8")
    except OSError:
        return ""


def resident(pids: Sequence[int]) -> tuple[float, float]:
    """Return RSS and PSS of processes together, in MB of 10⁶ bytes."""
    sums = {"Rss": 0, "Pss": 0}
    for pid in pids:
        try:
            lines = Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="utf-8").splitlines()
        except OSError:  # it ended meanwhile
            continue
        for line in lines:
            name, _, value = line.partition(":")
            if name in sums:
                sums[name] += int(value.split()[0])
    return sums["Rss"] * 1024 / 1e6, sums["Pss"] * 1024 / 1e6


def head(processor: str, snapshot: Snapshot, floor: dict[str, float]) -> Iterator[str]:
    """Yield what was measured, and the floor."""
    body = snapshot.body
    yield from (f"# The service beside a hand-written server, {processor}", "")
    yield f"{body.passages:,} passages, {body.encoder.question.reference}; k {K}, mode dense."
    yield from (f"Encoder of questions: {floor['choice']}. Command: `{' '.join(sys.argv)}`", "")
    yield from ("## The floor: encoder and index in one process, without HTTP", "", "| | |", "|---|---:|")
    yield f"| one question: encode + search, p50 | {floor['encode_ms']:.2f} + {floor['search_ms']:.2f} ms |"
    for size in (64, 256):
        encoded, found = floor[f"encoded_{size}"], floor[f"found_{size}"]
        yield f"| batch of {size}: encoded; encoded and searched | {encoded:,.0f}/s; {found:,.0f}/s |"


def tables(measured: Sequence[Measured], memory: Sequence[Resident]) -> Iterator[str]:
    """Yield what clients got, and the memory of the servers."""
    yield from ("", "## Requests", "", "| server | clients | p50 ms | p99 ms | requests/s | errors |")
    yield "|---|---|---:|---:|---:|---:|"
    for one in measured:
        figures = f"{one.p50_ms:.1f} | {one.p99_ms:.1f} | {one.per_second:,.0f} | {len(one.errors)}"
        yield f"| {one.server} | {one.clients} | {figures} |"
    yield from ("", "## Memory after that, MB", "")
    yield "| server | first answer after, s | answering process: RSS, PSS | all its processes: RSS, PSS |"
    yield "|---|---:|---:|---:|"
    for each in memory:
        mb = [f"{rss:,.0f}, {pss:,.0f}" for rss, pss in (each.answering, each.all)]
        yield f"| {each.server} | {each.start_seconds:.1f} | {mb[0]} | {mb[1]} |"


if __name__ == "__main__":
    main()
