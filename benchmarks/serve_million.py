"""The service over a million passages: how it starts, step by step, and what it takes, from a folder and from S3.

    PYTHONPATH=. python benchmarks/serve_million.py --work WORK --sentences A.jsonl.gz B.jsonl.gz

WORK keeps the store (`million_store.py`), so a second call makes nothing. Parts, of which `--parts` chooses some:
`steps` times the steps of one process that opens the snapshot; `serve` times `dpr serve` from the command to the first
answer, and its memory under load; `four` compares the memory of four replicas with that of one; `sharded` asks an
index in four processes; `s3` opens the snapshot from a Ceph gateway, with an empty cache.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import httpx
import numpy as np
from million_store import make_store
from processes import with_descendants
from serve import command_of, resident, running

from benchmarks.index_report import hardware
from tests.services.endpoint import free_ports

PARTS = ("steps", "serve", "four", "sharded", "s3")
QUESTIONS = 400
BUCKET = "million"
HEAD = (
    "| | first answer after, s | CPU of these processes until then, s | p50, ms | p99, ms | RSS, PSS, MB |",
    "|---|---:|---:|---:|---:|---:|",
)
OPEN = Path(__file__).with_name("serve_open.py")


def main() -> None:
    """Measure, print and write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--sentences", nargs="+", required=True, help="JSONL files with a field text")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    store = make_store(options.work, options.rows, options.sentences)
    os.environ["DPR_CACHE"] = str(options.work / "cache")
    parts = {"steps": steps, "serve": serve, "four": four, "sharded": sharded, "s3": from_s3}
    lines = [f"# The service over {options.rows:,} passages, {hardware()[0]}", "", f"Command: `{' '.join(sys.argv)}`"]
    lines.append(f"Load of the machine when it began: {os.getloadavg()[0]:.1f} (2 cores).")
    for name in options.parts:
        lines += ["", *parts[name](store, options.work)]
        print("\n".join(lines), flush=True)
        if options.out:
            options.out.write_text("\n".join(lines) + "\n", encoding="utf-8")


def steps(store: str, _: Path) -> Iterator[str]:
    """Yield the steps of opening, on a machine that knows the files' digests and on one that does not."""
    yield from ("## Opening the snapshot in one process", "")
    known = opened(store)
    with tempfile.TemporaryDirectory() as empty:
        fresh = opened(store, {"DPR_CACHE": empty})
    yield from step_table({"digests known": known, "fresh machine": fresh})


def opened(store: str, environment: dict[str, str] | None = None) -> list[dict[str, object]]:
    """Open a store in a process of its own; return its steps."""
    command = [sys.executable, str(OPEN), store]
    output = subprocess.run(
        command, env=os.environ | (environment or {}), stdout=subprocess.PIPE, text=True, check=True
    )
    return [json.loads(line) for line in output.stdout.splitlines()]


def step_table(columns: dict[str, list[dict[str, object]]]) -> Iterator[str]:
    """Yield a table of steps: seconds on the clock, seconds of CPU, memory afterwards."""
    yield "| step | " + " | ".join(f"{name}: s, CPU s, RSS, PSS, anonymous MB" for name in columns) + " |"
    yield "|---|" + "---:|" * len(columns)
    for rows in zip(*columns.values(), strict=True):
        cells = [
            "{seconds:.2f}, {cpu_seconds:.2f}, {Rss:,.0f}, {Pss:,.0f}, {Anonymous:,.0f}".format(**row) for row in rows
        ]
        yield f"| {rows[0]['step']} | " + " | ".join(cells) + " |"


def serve(store: str, _: Path) -> Iterator[str]:
    """Yield how long `dpr serve` takes until it answers, and what it takes then."""
    yield from ("## `dpr serve`, one replica", "", *HEAD)
    yield served("one replica", store)


def four(store: str, _: Path) -> Iterator[str]:
    """Yield the memory of four replicas beside that of one."""
    yield from ("## Four replicas on a machine", "", *HEAD)
    yield served("1 replica", store)
    yield served("4 replicas", store, "--replicas", "4")


def sharded(store: str, _: Path) -> Iterator[str]:
    """Yield what an index in four processes takes."""
    options = ("--topology", "sharded", "--shards", "4", "--shard-deadline", "10")
    yield from (f"## `{' '.join(options)}`", "", *HEAD)
    yield served("front and 4 shards", store, *options)


def served(name: str, store: str, *options: str) -> str:
    """Start a service, ask it, and return a row of a table."""
    (port,) = free_ports(1)
    command = [sys.executable, "-m", "ray_jobs.cli", "serve", store, "--port", str(port), *options]
    began = time.monotonic()
    with running(command, port) as process:
        seconds = time.monotonic() - began
        pids = [pid for pid in with_descendants(process.pid) if "ServeReplica:search" in command_of(pid)]
        cpu = sum(cpu_seconds(pid) for pid in pids)
        p50, p99 = asked(port)
        rss, pss = resident(pids)
    return f"| {name} | {seconds:.1f} | {cpu:.1f} | {p50:.1f} | {p99:.1f} | {rss:,.0f}, {pss:,.0f} |"


def asked(port: int) -> tuple[float, float]:
    """Ask one question after another by vectors; return percentiles in milliseconds."""
    took = []
    with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60) as client:
        for number in range(QUESTIONS):
            body = {
                "query": f"what is the treatment of disease {number} in town {number * 7}",
                "k": 10,
                "mode": "dense",
            }
            sent = time.perf_counter()
            client.post("/v1/search", json=body).raise_for_status()
            took.append(1000 * (time.perf_counter() - sent))
    p50, p99 = np.percentile(took, (50, 99))
    return float(p50), float(p99)


def cpu_seconds(pid: int) -> float:
    """Return the CPU time of a process."""
    fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def from_s3(store: str, work: Path) -> Iterator[str]:
    """Yield the steps of opening from a gateway with an empty cache."""
    from tests.services.ceph import ceph_gateway

    with tempfile.TemporaryDirectory(dir=work) as folder, ceph_gateway(Path(folder)) as gateway:
        environment = gateway.environment()
        os.environ.update(environment)
        client = gateway.client()
        client.create_bucket(Bucket=BUCKET)
        for name in objects_of(store):
            client.upload_file(str(Path(store, name)), BUCKET, f"store/{name}")
        cache = work / "s3-cache"
        shutil.rmtree(cache, ignore_errors=True)
        yield from ("## From a Ceph gateway on this machine, with an empty cache", "")
        yield from step_table({"by range, then fetched": opened(f"s3://{BUCKET}/store", {"DPR_CACHE": str(cache)})})


def objects_of(store: str) -> Sequence[str]:
    """Return the names of what the live snapshot names, and of its own document."""
    from dpr.formats import layout
    from dpr.formats.snapshots import live_snapshot
    from dpr.store import open_store

    snapshot = live_snapshot(open_store(store))
    return [layout.snapshot(snapshot.number), *(ref.name for ref in snapshot.body.objects())]


if __name__ == "__main__":
    main()
