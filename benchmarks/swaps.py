"""Changing snapshots under load: no request may fail, and no answer may come from two snapshots.

    PYTHONPATH=. python benchmarks/swaps.py --swaps 100 --requests 50000 --work /tmp/swaps --out swaps.md

A small collection is served by `dpr serve`. Clients in this process ask all the time; a night or a rollback is
published as soon as the service has followed the last one. Every answer is compared with what its snapshot must answer.
"""

import argparse
import os
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import numpy as np

from dpr.formats.snapshots import read_snapshot
from dpr.operations.rollback import rollback
from dpr.search.retrieve import Retriever
from tests.collection import Collection
from tests.services.endpoint import free_ports
from tests.tiny import make_encoder, random_texts

QUESTION = "w1 w2 w3 w4"
PASSAGES = 2_000
NEAR_SECONDS = 1.0
"""A request counts as sent during a swap if it was sent within this time of the first answer from a new snapshot."""


@dataclass
class Load:
    """What clients got."""

    answers: list[tuple[float, float, int, str]] = field(default_factory=list)
    """When it was sent, seconds until the answer, number of the snapshot, id of the first hit."""
    failures: list[str] = field(default_factory=list)
    done: threading.Event = field(default_factory=threading.Event)

    def ask(self, url: str) -> None:
        """Ask until it is done."""
        with httpx.Client(base_url=url, timeout=60) as client:
            while not self.done.is_set():
                sent = time.perf_counter()
                # spaces change no vector, and make a question that no cache of answers knows
                question = QUESTION + " " * (len(self.answers) % 1_000)
                try:
                    answer = client.post("/v1/search", json={"query": question, "k": 1, "exact": True, "mode": "dense"})
                    body = answer.raise_for_status().json()
                except httpx.HTTPError as error:
                    self.failures.append(repr(error))
                    continue
                took = time.perf_counter() - sent
                self.answers.append((sent, took, body["snapshot"], body["results"][0]["hits"][0]["id"]))


def main() -> None:
    """Serve, ask, publish, and print what happened."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--swaps", type=int, default=100)
    parser.add_argument("--requests", type=int, default=50_000, help="requests at least")
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--work", type=Path, required=True, help="new folder for the collection")
    parser.add_argument("--out", type=Path, help="Markdown file for the result")
    options = parser.parse_args()
    encoder = make_encoder(options.work / "encoder")
    collection = Collection(options.work / "night", encoder, random_texts(PASSAGES), gate={"min_recall": 0.0})
    collection.night()
    (port,) = free_ports(1)
    command = [sys.executable, "-m", "ray_jobs.cli", "serve", collection.store.url, "--port", str(port)]
    load, url = Load(), f"http://127.0.0.1:{port}"
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as service:
        try:
            assert service.stdout is not None
            while "Ctrl-C" not in service.stdout.readline():
                pass
            with ThreadPoolExecutor(options.clients) as threads:
                for _ in range(options.clients):
                    threads.submit(load.ask, url)
                try:
                    publish(collection, options.swaps, url)
                    while len(load.answers) < options.requests:
                        time.sleep(0.1)
                finally:
                    load.done.set()
        finally:
            service.terminate()
    text = table(options, collection, load)
    print(text)
    if options.out:
        options.out.write_text(text, encoding="utf-8")


def publish(collection: Collection, swaps: int, url: str) -> None:
    """Publish a night with a new passage, then a rollback to the first snapshot, and so on."""
    for number in range(2, swaps + 2):
        if number % 2:
            rollback(collection.store, 1)
            collection.corpus.pop(f"new{number - 1}")
        else:
            collection.corpus[f"new{number}"] = QUESTION
            collection.night()
        while httpx.get(f"{url}/v1/health").json()["snapshot"] != number:
            time.sleep(0.05)


def table(options: argparse.Namespace, collection: Collection, load: Load) -> str:
    """Return what was measured as Markdown."""
    swaps: dict[int, float] = {}
    for sent, took, snapshot, _ in load.answers:
        swaps[snapshot] = min(swaps.get(snapshot, np.inf), sent + took)
    right = {number: right_id(collection, number) for number in swaps}
    mixed = sum(right[snapshot] != id_ for _, _, snapshot, id_ in load.answers)
    moments = np.sort([moment for number, moment in swaps.items() if number > 1])
    sent_Q, took_Q = (np.array([answer[column] for answer in load.answers]) for column in (0, 1))
    after_Q = np.searchsorted(moments, sent_Q)
    gaps = [np.abs(moments[np.clip(after_Q + shift, 0, len(moments) - 1)] - sent_Q) for shift in (-1, 0)]
    near_Q = np.minimum(*gaps) < NEAR_SECONDS
    lines = [
        f"{os.cpu_count()} CPUs; {options.clients} clients in one process; {PASSAGES:,} passages; command: "
        + " ".join(sys.argv),
        "",
        "| | |",
        "|---|---:|",
        f"| snapshots that answered | {len(swaps)} |",
        f"| requests answered | {len(load.answers):,} |",
        f"| requests failed | {len(load.failures)} |",
        f"| answers that are not those of their snapshot | {mixed} |",
        f"| requests/s | {len(load.answers) / (sent_Q.max() - sent_Q.min()):,.0f} |",
    ]
    for name, some_Q in (("steady", ~near_Q), (f"within {NEAR_SECONDS:g} s of a swap", near_Q)):
        p50, p99 = np.percentile(1000 * took_Q[some_Q], (50, 99)) if some_Q.any() else (np.nan, np.nan)
        lines.append(f"| {name}: requests, p50, p99 | {some_Q.sum():,}, {p50:.1f} ms, {p99:.1f} ms |")
    return "\n".join([*lines, *load.failures[:5]]) + "\n"


def right_id(collection: Collection, number: int) -> str:
    """Return what the snapshot must answer; snapshots with the same body answer the same."""
    body = read_snapshot(collection.store, number).body.body_id()
    if body not in _known:
        with Retriever.open(collection.store, number) as retriever:
            _known[body] = retriever.search([QUESTION], 1, mode="dense", exact=True).hits[0][0].id
    return _known[body]


_known: dict[str, str] = {}


if __name__ == "__main__":
    main()
