"""Running many seeds in several processes, and one seed for a person to look at."""

import multiprocessing
import time
from collections.abc import Iterator, Sequence
from queue import Empty

from simulation.scenario import Found, Scenario, Simulator
from simulation.workplace import workplace

REPORTED = 10
"""Seeds that fail and are printed, at most."""
LOOK_SECONDS = 5.0
"""Between two looks whether the workers still live."""


def show(seed: int, *, trace: bool) -> int:
    """Simulate one night and print what happened."""
    with workplace() as caches:
        found = Simulator(caches, tracebacks=True).run(seed)
    print(Scenario.drawn(seed))
    for line in found.trace if trace else ():
        print(line)
    print(_summary([found]), f"digest {found.digest}")
    for violation in found.violations:
        print(f"VIOLATION: {violation}")
    return 1 if found.violations else 0


def simulate(seeds: Sequence[int], processes: int) -> int:
    """Simulate nights in several processes and print a summary, with the seeds that broke an invariant."""
    started, results, failed = time.monotonic(), list[Found](), 0
    context = multiprocessing.get_context("spawn")
    shares = [seeds[start::processes] for start in range(processes)]
    queue: multiprocessing.Queue[Found | None] = context.Queue()
    workers = [context.Process(target=_work, args=(share, queue)) for share in shares if share]
    for worker in workers:
        worker.start()
    for found in _until_all_end(queue, workers):
        results.append(found)
        if found.violations:
            failed += 1
            if failed <= REPORTED:
                print(f"seed {found.seed} broke an invariant; replay: python -m simulation --seed {found.seed} --trace")
                for violation in found.violations[:3]:
                    print(f"  {violation}", flush=True)
    seconds = time.monotonic() - started
    print(f"{_summary(results)} {failed} seeds broke an invariant; {seconds:.0f} s in {len(workers)} processes.")
    if len(results) < len(seeds):
        print(f"error: a process of the simulator died; {len(seeds) - len(results)} seeds were not simulated")
    return 1 if failed or len(results) < len(seeds) else 0


def _work(seeds: Sequence[int], queue: "multiprocessing.Queue[Found | None]") -> None:
    """Simulate nights in a process of its own."""
    try:
        with workplace() as caches:
            simulator = Simulator(caches)
            for seed in seeds:
                found = simulator.run(seed)
                queue.put(found if found.violations else found.without_trace())
    finally:
        queue.put(None)


def _until_all_end(
    queue: "multiprocessing.Queue[Found | None]", workers: Sequence[multiprocessing.process.BaseProcess]
) -> Iterator[Found]:
    """Yield what the workers find, until each has said that it ends, or has died."""
    ended = 0
    while ended < len(workers):
        try:
            found = queue.get(timeout=LOOK_SECONDS)
        except Empty:
            if not any(worker.is_alive() for worker in workers):
                return
            continue
        if found is None:
            ended += 1
        else:
            yield found
    for worker in workers:
        worker.join()


def _summary(results: Sequence[Found]) -> str:
    counts = {name: sum(getattr(r, name) for r in results) for name in ("attempts", "calls", "faults", "published")}
    return (
        f"{len(results)} nights: {counts['attempts']} runs, {counts['published']} snapshots, {counts['calls']:,} calls "
        f"of the store, {counts['faults']:,} faults."
    )
