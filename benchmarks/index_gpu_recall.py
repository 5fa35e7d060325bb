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

from dpr.index.hardware import Hardware
from dpr.index.merge import ROW_BITS
from dpr.index.torch_kmeans import exact_products
from dpr.index.train import read_index
from dpr.index.tune import RECALL_AT, tune
from dpr.manifest import SegmentEntry
from dpr.pipeline.run import Run
from dpr.segment import iter_groups, vectors_of
from dpr.store import Store
from dpr.store.reader import open_object

READERS = 32
BLOCK_ROWS = 500_000
Ids = npt.NDArray[np.int64]


class Stored:
    """All stored vectors, on the GPU where there is one, found by index id."""

    def __init__(self, store: Store, segments: list[SegmentEntry], dim: int) -> None:
        self._device = Hardware.here().device or "cpu"
        self.starts = np.cumsum([0, *(entry.rows for entry in segments)])
        self.vectors_ND: Tensor = torch.empty((int(self.starts[-1]), dim), dtype=torch.float16, device=self._device)

        def load(place: int) -> None:
            file = open_object(store, segments[place].object.name)
            block_ND = np.concatenate([vectors_of(table) for table in iter_groups(file, ["embedding"])])
            start = int(self.starts[place])
            self.vectors_ND[start : start + len(block_ND)] = torch.from_numpy(block_ND)

        with ThreadPoolExecutor(READERS) as pool:
            list(pool.map(load, range(len(segments))))

    def fetch(self, ids_N: Ids) -> npt.NDArray[np.float16]:
        """Vectors (N, D) of ids; segments are numbered as they are ordered."""
        rows_N = self.starts[ids_N >> ROW_BITS] + (ids_N & (2**ROW_BITS - 1))
        return self.vectors_ND[torch.from_numpy(rows_N).to(self._device)].cpu().numpy()

    def exact(self, questions_QD: npt.NDArray[np.float32], k: int) -> Ids:
        """Ids (Q, K) of the nearest by brute force, in float32."""
        asked_QD = torch.from_numpy(questions_QD).to(self._device)
        best_QK = torch.empty((len(asked_QD), 0), device=self._device)
        rows_QK = torch.empty((len(asked_QD), 0), dtype=torch.int64, device=self._device)
        with exact_products():
            for start in range(0, len(self.vectors_ND), BLOCK_ROWS):
                block_ND = self.vectors_ND[start : start + BLOCK_ROWS].float()
                found = (asked_QD @ block_ND.T).topk(min(k, len(block_ND)), dim=1)
                best_QK, rows_QK = torch.cat([best_QK, found.values], 1), torch.cat([rows_QK, found.indices + start], 1)
                kept = best_QK.topk(min(k, best_QK.shape[1]), dim=1)
                best_QK, rows_QK = kept.values, rows_QK.gather(1, kept.indices)
        rows = rows_QK.cpu().numpy()
        segment = np.searchsorted(self.starts, rows, side="right") - 1
        ids: Ids = (segment << ROW_BITS) | (rows - self.starts[segment])
        return ids


def recall_table(run: Run, segments: list[SegmentEntry], path: Path, count: int) -> str:
    """What tuning finds on held-out questions, as a table."""
    started = time.perf_counter()
    stored = Stored(run.store, segments, run.spec.dim)
    questions_QD = questions(count, run.spec.dim)
    truth_QK = stored.exact(questions_QD, RECALL_AT)
    exact_seconds = time.perf_counter() - started
    started = time.perf_counter()
    index = read_index(path)
    tuned = tune(index, questions_QD, truth_QK, stored.fetch, run.recipe.index)
    rescores = sorted({point.rescore for point in tuned.curve})
    lines = [
        f"Recall@{RECALL_AT} of {count} questions against exact search, by lists visited (nprobe) and candidates "
        f"re-scored. Chosen for {run.recipe.index.recall_target}: nprobe {tuned.settings.nprobe}, "
        f"{tuned.settings.rescore} candidates, recall {tuned.recall:.4f}. Reading all vectors and exact search took "
        f"{exact_seconds:.0f} s, tuning {time.perf_counter() - started:.0f} s.",
        "",
        "| nprobe | " + " | ".join(map(str, rescores)) + " |",
        "|---" * (1 + len(rescores)) + "|",
    ]
    for nprobe in sorted({point.nprobe for point in tuned.curve}):
        found = {point.rescore: point.recall for point in tuned.curve if point.nprobe == nprobe}
        lines.append(f"| {nprobe} | " + " | ".join(f"{found[rescore]:.3f}" for rescore in rescores) + " |")
    return "\n".join(lines)
