"""What one question costs: the constants of dpr/index/cost.py, measured on one thread.

    python benchmarks/search_cost.py [--rows 60000] [--dim 384]

Each kind is filled with the same vectors and asked one question at a time. The slope over the vectors visited gives
nanoseconds per vector; the rest, at one list, those per list. Prints one row a kind: measured, and as predicted now.
"""

import argparse
import time

import faiss
import numpy as np

from dpr.index.candidates import exact_scores
from dpr.index.choose import choose
from dpr.index.cost import search_cost
from dpr.index.serving_index import ServingIndex
from dpr.index.training import train
from dpr.recipe import IndexConfig

FACTORIES = ("IVF256,Flat", "IVF256,SQ8", "IVF256,PQ{}", "IVF256,PQ{}x4fs", "IVF256,RaBitQ")
QUESTIONS = 100
CANDIDATES = 200


def microseconds(index: ServingIndex, questions_QD: np.ndarray, nprobe: int) -> float:
    """Median time of one question."""
    times = []
    for question_D in questions_QD:
        started = time.perf_counter()
        index.search(question_D[None], CANDIDATES, nprobe)
        times.append(time.perf_counter() - started)
    return float(np.median(times)) * 1e6


def main() -> None:
    """Measure all kinds and print them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=60_000)
    parser.add_argument("--dim", type=int, default=384)
    arguments = parser.parse_args()
    faiss.omp_set_num_threads(1)
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(200, arguments.dim))
    vectors_ND = centres[rng.integers(0, 200, arguments.rows)] + 0.7 * rng.normal(size=(arguments.rows, arguments.dim))
    vectors_ND = (vectors_ND / np.linalg.norm(vectors_ND, axis=1, keepdims=True)).astype(np.float32)
    questions_QD = vectors_ND[:QUESTIONS] + 0.01 * rng.normal(size=(QUESTIONS, arguments.dim)).astype(np.float32)
    print(f"{'kind':24} {'probes':>6} {'measured µs':>12} {'predicted µs':>12}")
    for pattern in FACTORIES:
        factory = pattern.format(arguments.dim // 4)
        filled = train(vectors_ND[:20_000], choose(IndexConfig(factory=factory), arguments.rows, arguments.dim), seed=1)
        filled.add(vectors_ND)
        index = ServingIndex([filled])
        for nprobe in (1, 16, 128):
            predicted = search_cost(index).milliseconds(index, nprobe, 0) * 1e3
            print(f"{factory:24} {nprobe:6} {microseconds(index, questions_QD, nprobe):12.1f} {predicted:12.1f}")
    half_ND = vectors_ND.astype(np.float16)
    candidates_QC = rng.integers(0, arguments.rows, (QUESTIONS, CANDIDATES))
    started = time.perf_counter()
    for question_D, ids_C in zip(questions_QD, candidates_QC, strict=True):
        exact_scores(question_D[None], ids_C[None], lambda ids: half_ND[ids])
    spent = (time.perf_counter() - started) / QUESTIONS * 1e6
    print(f"{'re-scoring':24} {CANDIDATES:6} {spent:12.1f} {search_cost(index).candidate_ns * CANDIDATES / 1e3:12.1f}")


if __name__ == "__main__":
    main()
