"""What one question costs: as predicted for the reference processor, as the gate measures it, and as others take.

    python benchmarks/search_cost.py [--rows 60000] [--dim 384]

Each kind is filled with the same vectors. The gate's measurement (dpr/index/timing.py) asks 32 questions. Then 200
others are asked one at a time, in CPU time of one thread, also at settings between those that were measured. Prints a
row for each setting: microseconds of the 200, and how far both estimates are from them.
"""

import argparse
import time

import numpy as np
import numpy.typing as npt

from dpr.index.candidates import rescore
from dpr.index.choose import choose
from dpr.index.cost import search_cost
from dpr.index.hardware import faiss_threads
from dpr.index.recall import KnownQuestions
from dpr.index.serving_index import ServingIndex
from dpr.index.timing import TIMED_QUESTIONS, measure_cost
from dpr.index.training import train
from dpr.recipe_index import IndexConfig

LISTS = "IVF256"
FACTORIES = ("Flat", "SQ8", "PQ{}", "PQ{}x4fs", "RaBitQ")
OTHERS, AT, CANDIDATES = 200, 20, 1_000
SETTINGS = ((1, 0), (16, 50), (24, 100), (128, 100), (128, 500))


def microseconds(index: ServingIndex, known: KnownQuestions, nprobe: int, candidates: int) -> float:
    """Mean time of the questions that the gate did not ask."""
    spent = []
    for question_D in known.vectors_QD[TIMED_QUESTIONS:]:
        started = time.thread_time()
        _, ids_QC = index.search(question_D[None], max(AT, candidates), nprobe)
        if candidates:
            rescore(question_D[None], ids_QC, known.fetching(ids_QC), AT)
        spent.append(time.thread_time() - started)
    return float(np.mean(spent)) * 1e6


def made(rows: int, dim: int) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """Vectors around 200 centres (N, D), and questions near some of them (Q, D)."""
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(200, dim))
    vectors_ND = centres[rng.integers(0, 200, rows)] + 0.7 * rng.normal(size=(rows, dim))
    vectors_ND = (vectors_ND / np.linalg.norm(vectors_ND, axis=1, keepdims=True)).astype(np.float32)
    rows_n = rng.choice(rows, TIMED_QUESTIONS + OTHERS, replace=False)
    return vectors_ND, (vectors_ND[rows_n] + 0.01 * rng.normal(size=(len(rows_n), dim))).astype(np.float32)


def main() -> None:
    """Measure all kinds and print them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=60_000)
    parser.add_argument("--dim", type=int, default=384)
    arguments = parser.parse_args()
    vectors_ND, questions_QD = made(arguments.rows, arguments.dim)
    half_ND = vectors_ND.astype(np.float16)
    nothing_QK = np.empty((len(questions_QD), 0))
    known = KnownQuestions(
        questions_QD, nothing_QK.astype(np.float32), nothing_QK.astype(np.int64), lambda _: lambda ids: half_ND[ids]
    )
    print("| kind | nprobe | candidates | µs | predicted | measured by the gate |\n|---|---:|---:|---:|---:|---:|")
    kinds = [f"{LISTS},{code.format(arguments.dim // 4)}" for code in FACTORIES]
    for factory in [*kinds, "Flat", "HNSW32"]:
        filled = train(vectors_ND[:20_000], choose(IndexConfig(factory=factory), arguments.rows, arguments.dim), seed=1)
        filled.add(vectors_ND)
        index = ServingIndex([filled])
        nprobes = [2**power for power in range(9)] if index.lists or index.is_graph else [1]
        gate = measure_cost(index, known, AT, (nprobes, CANDIDATES), lambda _: None, float("inf"))
        with faiss_threads(1):
            for nprobe, candidates in SETTINGS:
                taken = microseconds(index, known, nprobe, candidates)
                estimates = (cost.milliseconds(index, nprobe, candidates) for cost in (search_cost(index), gate))
                errors = " | ".join(f"{1e5 * estimate / taken - 100:+.0f}%" for estimate in estimates)
                print(f"| {factory} | {nprobe} | {candidates} | {taken:.1f} | {errors} |", flush=True)


if __name__ == "__main__":
    main()
