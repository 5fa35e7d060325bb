"""Recall@20 for benchmarks/index_gpu.py: the index, searched as it is served, against brute force on the GPU.

Shapes: N rows, D dimensions, Q questions, K neighbours.
"""

import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from index_gpu_data import questions
from torch import Tensor

from dpr.formats.manifest import SegmentEntry
from dpr.index.candidates import search
from dpr.index.hardware import Hardware
from dpr.index.row_ids import ROW_BITS
from dpr.index.shards import open_shard
from dpr.index.torch_kmeans import exact_products
from dpr.run import Run
from dpr.search.vectors import SegmentVectors
from dpr.store import Store

PARALLEL_READS = 32
K = 20
CANDIDATES = (0, 50, 100, 200, 500, 1000)
NPROBES = (8, 16, 32, 64, 128, 256, 512, 1024, 2048)
BLOCK_ROWS = 500_000
Ids = npt.NDArray[np.int64]


class Stored:
    """All stored vectors, on the GPU where there is one."""

    def __init__(self, store: Store, segments: list[SegmentEntry], dim: int) -> None:
        self._device = Hardware.here().device or "cpu"
        self.starts = np.cumsum([0, *(entry.rows for entry in segments)])
        self.vectors_ND: Tensor = torch.empty((int(self.starts[-1]), dim), dtype=torch.float16, device=self._device)

        def load(place: int) -> None:
            block_ND = SegmentVectors.open(store, segments[place].object).all()
            start = int(self.starts[place])
            self.vectors_ND[start : start + len(block_ND)] = torch.from_numpy(block_ND)

        with ThreadPoolExecutor(PARALLEL_READS) as pool:
            list(pool.map(load, range(len(segments))))

    def exact(self, questions_QD: npt.NDArray[np.float32], k: int) -> Ids:
        """Ids (Q, K) of the nearest by brute force, in float32."""
        whole_QD = torch.from_numpy(questions_QD).to(self._device)
        best_QK = torch.empty((len(whole_QD), 0), device=self._device)
        rows_QK = torch.empty((len(whole_QD), 0), dtype=torch.int64, device=self._device)
        with exact_products():
            for start in range(0, len(self.vectors_ND), BLOCK_ROWS):
                block_ND = self.vectors_ND[start : start + BLOCK_ROWS].float()
                found = (whole_QD @ block_ND.T).topk(min(k, len(block_ND)), dim=1)
                best_QK, rows_QK = torch.cat([best_QK, found.values], 1), torch.cat([rows_QK, found.indices + start], 1)
                kept = best_QK.topk(min(k, best_QK.shape[1]), dim=1)
                best_QK, rows_QK = kept.values, rows_QK.gather(1, kept.indices)
        rows = rows_QK.cpu().numpy()
        segment = np.searchsorted(self.starts, rows, side="right") - 1
        ids: Ids = (segment << ROW_BITS) | (rows - self.starts[segment])
        return ids


def recall_table(run: Run, segments: list[SegmentEntry], path: Path, count: int) -> str:
    """What an index finds for held-out questions, as a table."""
    started = time.perf_counter()
    questions_QD = questions(count, run.spec.dim)
    truth_QK = Stored(run.store, segments, run.spec.dim).exact(questions_QD, K)
    exact_seconds = time.perf_counter() - started
    index = open_shard(path)
    lines = [
        f"Recall@{K} of {count} questions against exact search, by lists visited (nprobe) and candidates re-scored (0: "
        f"none), and seconds to find them all on all cores, re-scoring left out. Reading all vectors and exact search "
        f"took {exact_seconds:.0f} s.",
        "",
        "| nprobe | " + " | ".join(map(str, CANDIDATES)) + " | s |",
        "|---" * (2 + len(CANDIDATES)) + "|",
    ]
    for nprobe in NPROBES:
        started = time.perf_counter()
        _, ids_QC = search(index, questions_QD, max(CANDIDATES), nprobe)
        seconds = time.perf_counter() - started
        # among candidates with exact scores a true neighbour always comes first, so it is enough that it is one
        found = [recall_at(ids_QC[:, : max(K, number)], truth_QK) for number in CANDIDATES]
        lines.append(f"| {nprobe} | " + " | ".join(f"{recall:.4f}" for recall in found) + f" | {seconds:.1f} |")
        if found[-1] > 0.999:
            break
    return "\n".join(lines)


def recall_at(found_QC: Ids, true_QK: Ids) -> float:
    """Share of true neighbours that are among those found."""
    return float(np.mean([np.isin(true, found).mean() for true, found in zip(true_QK, found_QC, strict=True)]))
