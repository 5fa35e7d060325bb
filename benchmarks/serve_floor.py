"""The floor under the service: the same questions encoded and searched in one process, without HTTP.

    python benchmarks/serve_floor.py STORE QUESTIONS.txt

It prints a JSON object: medians of one question at a time, and questions a second in batches.
"""

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from benchmarks.serve_load import K
from dpr.encoder.compute import Compute
from dpr.encoder.question_encoder import QuestionEncoder
from dpr.formats.snapshots import live_snapshot
from dpr.search.retrieve import question_tower
from dpr.search.vector_search import VectorSearch
from dpr.store import open_store

ALONE, WARM, BATCH_QUESTIONS, BATCHES = 500, 100, (64, 256), 12


def milliseconds(work: Callable[[], object]) -> float:
    """Return what a call takes."""
    started = time.perf_counter()
    work()
    return 1000 * (time.perf_counter() - started)


def main() -> None:
    """Measure, and print."""
    store = open_store(sys.argv[1])
    questions = Path(sys.argv[2]).read_text(encoding="utf-8").splitlines()
    body = (snapshot := live_snapshot(store)).body
    search = VectorSearch.open(store, body)
    encoder = QuestionEncoder(question_tower(snapshot, None), Compute(body.encoder.config.precision))
    encode_ms, search_ms = [], []
    for question in questions[: WARM + ALONE]:
        encode_ms.append(milliseconds(lambda: encoder.encode([question])))  # noqa: B023
        vector_1D = encoder.encode([question])
        search_ms.append(milliseconds(lambda: search.top(vector_1D, K)))  # noqa: B023
    found = {
        "choice": encoder.choice,
        "encode_ms": np.median(encode_ms[WARM:]),
        "search_ms": np.median(search_ms[WARM:]),
    }
    for size in BATCH_QUESTIONS:
        starts = range(0, BATCHES * size, size)
        batches = [[questions[place % len(questions)] for place in range(first, first + size)] for first in starts]
        encoded = [milliseconds(lambda: encoder.encode(batch)) for batch in batches]  # noqa: B023
        both = [milliseconds(lambda: search.top(encoder.encode(batch), K)) for batch in batches]  # noqa: B023
        found |= {f"encoded_{size}": 1000 * size / np.median(encoded), f"found_{size}": 1000 * size / np.median(both)}
    print(json.dumps(found))


if __name__ == "__main__":
    main()
