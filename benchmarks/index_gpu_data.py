"""Vectors for benchmarks/index_gpu.py: made up, and shaped as those of passages are, in real segment files.

A vector is a topic's centre plus noise, both in 48 dimensions that are mapped to all, plus a little noise in all of
them, scaled to length 1. Topics have unequal weights, as 1 / rank^0.7. Questions come from the same space: other
weights, more noise, and a shift of their own, so they are distributed otherwise than passages.

Shapes: N passages, T topics, I inner dimensions, D dimensions, Q questions.
"""

import json
import os
import subprocess
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from dpr.formats import layout
from dpr.formats.manifest import SegmentEntry
from dpr.formats.objects import file_sha256
from dpr.formats.records import ObjectRef
from dpr.formats.segment import passage_schema, write_segment

TOPICS, INNER = 4_000, 48
Floats = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Corpus:
    """What to make, and where."""

    store: str
    encoder_id: str
    rows: int
    dim: int
    segment_rows: int

    @property
    def counts(self) -> list[int]:
        """Rows of each segment."""
        return [min(self.segment_rows, self.rows - first) for first in range(0, self.rows, self.segment_rows)]


def make_segments(corpus: Corpus, processes: int) -> tuple[list[SegmentEntry], float]:
    """All segments, written by so many processes and flushed to disk; and the seconds it took."""
    started = time.perf_counter()
    # this file as a script, so that the processes it starts do not import all that the caller did
    command = [sys.executable, __file__, json.dumps(asdict(corpus)), str(processes)]
    single = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    made = subprocess.run(command, stdout=subprocess.PIPE, check=True, env=os.environ | single).stdout
    os.sync()
    return [SegmentEntry.model_validate(entry) for entry in json.loads(made)], time.perf_counter() - started


def main() -> None:
    corpus, processes = Corpus(**json.loads(sys.argv[1])), int(sys.argv[2])
    numbers = range(len(corpus.counts))
    Path(corpus.store, layout.segment(corpus.encoder_id, "0")).parent.mkdir(parents=True, exist_ok=True)
    with ProcessPoolExecutor(processes, get_context("spawn"), pa.set_cpu_count, (1,)) as pool:
        entries = list(pool.map(_make_segment, [corpus] * len(numbers), numbers))
    print(json.dumps([entry.model_dump(mode="json") for entry in entries]))


def _make_segment(corpus: Corpus, number: int) -> SegmentEntry:
    rows = corpus.counts[number]
    rng = np.random.default_rng((1, number))
    topic_N = rng.choice(TOPICS, rows, p=_weights(0.7))
    vectors_ND = _vectors(rng, topic_N, (0.55, 0.12), corpus.dim)
    names = [f"p{number}-{row}" for row in range(rows)]
    titles = [f"Topic {topic}" for topic in topic_N.tolist()]
    texts = [f"Passage {name} says something about {title}." for name, title in zip(names, titles, strict=True)]
    hashes = [rng.bytes(16) for _ in range(rows)]
    columns = [names, titles, texts, hashes, hashes]
    arrays = [pa.array(column, field.type) for column, field in zip(columns, passage_schema(), strict=True)]
    segment_id = f"{number:016x}"
    stem = layout.segment(corpus.encoder_id, segment_id)
    path = Path(corpus.store, f"{stem}.parquet")
    write_segment(path, pa.Table.from_arrays(arrays, schema=passage_schema()), vectors_ND, corpus.encoder_id)
    # named as `put_object` does, without its copy
    sha256 = file_sha256(path)
    name = f"{stem}-{sha256[: layout.SHORT_DIGEST]}.parquet"
    ref = ObjectRef(name=name, size_bytes=path.stat().st_size, sha256=sha256)
    path.rename(Path(corpus.store, name))
    return SegmentEntry(number=number, segment_id=segment_id, rows=rows, object=ref)


def questions(count: int, dim: int) -> Floats:
    """Question vectors (Q, D)."""
    rng = np.random.default_rng(2)
    topic_Q = rng.choice(TOPICS, count, p=_weights(0.2)[::-1])
    shift_D = np.random.default_rng(3).standard_normal(dim, np.float32) * 0.1
    found_QD = _vectors(rng, topic_Q, (0.8, 0.12), dim).astype(np.float32) + shift_D / dim**0.5
    return found_QD / np.linalg.norm(found_QD, axis=1, keepdims=True)


def _weights(power: float) -> npt.NDArray[np.float64]:
    weights_T = 1.0 / np.arange(1, TOPICS + 1) ** power
    return weights_T / weights_T.sum()


def _vectors(
    rng: np.random.Generator, topic_N: npt.NDArray[np.int64], noise: tuple[float, float], dim: int
) -> npt.NDArray[np.float16]:
    shared = np.random.default_rng(0)
    centres_TI = shared.standard_normal((TOPICS, INNER), np.float32)
    # inner dimensions count less and less, as the principal components of real vectors do
    scale_I1 = (1.0 / np.sqrt(1 + np.arange(INNER, dtype=np.float32)))[:, None]
    basis_ID = shared.standard_normal((INNER, dim), np.float32) * scale_I1
    inner_noise, outer_noise = noise
    inner_NI = centres_TI[topic_N] + inner_noise * rng.standard_normal((len(topic_N), INNER), np.float32)
    vectors_ND = inner_NI @ basis_ID
    vectors_ND += outer_noise * rng.standard_normal(vectors_ND.shape, np.float32)
    vectors_ND /= np.linalg.norm(vectors_ND, axis=1, keepdims=True)
    return vectors_ND.astype(np.float16)


if __name__ == "__main__":
    main()
