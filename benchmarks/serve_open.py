"""Open the live snapshot of a store as a replica does, ask questions, and print each step as a line of JSON.

PYTHONPATH=. python benchmarks/serve_open.py STORE
"""

import json
import sys
import time
from pathlib import Path

MEMORY = ("Rss", "Pss", "Anonymous")
WAIT_SECONDS = 180.0
QUESTIONS = 100


class Steps:
    """Times steps one after the other."""

    def __init__(self) -> None:
        self._since, self._cpu_since = time.perf_counter(), time.process_time()

    def note(self, step: str, times: int = 1) -> None:
        """Print what a step took, or each of several times that it was done."""
        now, cpu = time.perf_counter(), time.process_time()
        took = {"seconds": (now - self._since) / times, "cpu_seconds": (cpu - self._cpu_since) / times}
        print(json.dumps({"step": step} | took | memory()), flush=True)
        self._since, self._cpu_since = time.perf_counter(), time.process_time()


def memory() -> dict[str, float]:
    """Return what this process takes, in MB of 10⁶ bytes."""
    lines = Path("/proc/self/smaps_rollup").read_text(encoding="utf-8").splitlines()[1:]
    sizes = {line.partition(":")[0]: int(line.split()[1]) * 1024 / 1e6 for line in lines}
    return {name: sizes[name] for name in MEMORY}


def main() -> None:
    """Open, ask, and wait until all is fetched."""
    steps = Steps()
    from dpr.operations.follow import Follower
    from dpr.store import open_store

    steps.note("import the library")
    follower = Follower(open_store(sys.argv[1]))
    steps.note("open encoder, index, words and segments, and try them")
    follower.search(["what is the treatment of a cold"], 10, mode="dense")
    steps.note("first question")
    follower.search(["what is the treatment of a cold in children"], 10, mode="dense")
    steps.note("second question")
    ask(follower.search, 20, "early")
    steps.note("each of the next 20", 20)
    until = time.monotonic() + WAIT_SECONDS
    while not follower.state.is_fetched and time.monotonic() < until:
        time.sleep(0.1)
    steps.note("until everything is fetched")
    ask(follower.search, QUESTIONS, "later")
    time.sleep(2.0)  # texts are unpacked beside the questions
    ask(follower.search, QUESTIONS, "warm")
    steps.note(f"{2 * QUESTIONS} more, while texts are unpacked")
    for mode in ("dense", "bm25", "hybrid"):
        follower.search(["the first of this mode"], 10, mode=mode)
        steps.note(f"first in mode {mode}")
        ask(lambda *given, mode=mode: follower.search(*given, mode=mode), QUESTIONS, mode)
        steps.note(f"each of {QUESTIONS} in mode {mode}", QUESTIONS)
    follower.close()


def ask(search, count: int, salt: str) -> None:  # type: ignore[no-untyped-def]  # either of two signatures
    """Ask different questions, one after the other."""
    for number in range(count):
        search([f"what is the treatment {salt} of disease {number} in town {number * 7}"], 10)


if __name__ == "__main__":
    main()
