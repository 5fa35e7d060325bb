"""The build stage: code the vectors of each segment with the codebook, once, into a part.

A part is named by the bytes of its codebook and of its segment, so it never meets another codebook.
"""

import functools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from dpr.engine.room import Need, check_room
from dpr.engine.stage import Stage, Step, Work, recorded
from dpr.formats import layout
from dpr.formats.loose import LooseRows
from dpr.formats.manifest import CodebookEntry, SegmentEntry
from dpr.formats.objects import bytes_to_fetch, fetch_object, put_object
from dpr.formats.records import ObjectRef, Result
from dpr.formats.stored_vectors import FLOAT16_BYTES, Vectors
from dpr.index.coding import Coder, build_part, coder
from dpr.index.faiss_file import read_faiss
from dpr.index.hardware import Hardware
from dpr.index.kinds import core
from dpr.index.part import ROW_BYTES, write_part
from dpr.run import Run
from dpr.search.vectors import SegmentVectors
from dpr.stages.drift import CodebookChoice
from dpr.store import open_store
from dpr.store.temporary import temporary_folder

MAX_FAR = 1_000
"""Far rows of a segment that are kept with its part."""


@dataclass(frozen=True)
class BuildUnit:
    """One segment to code."""

    record: str
    stem: str
    """Start of the name of its object."""
    segment: ObjectRef
    rows: int

    @property
    def read_bytes(self) -> int:
        return self.segment.size_bytes


class PartResult(Result):
    """A part; `rows` are all rows of its segment, dead ones included."""

    part: ObjectRef
    far: ObjectRef | None
    """Its rows that are far from every centroid, with their vectors: the farthest ones, at most MAX_FAR."""


def build(
    run: Run, segments: Sequence[SegmentEntry], codebook: CodebookEntry, choice: CodebookChoice
) -> list[PartResult]:
    """Code the segments that have no part yet; returns the part of each. Some kinds of index have no parts."""
    if not choice.plan.mergeable:
        return []
    units = plan_build(segments, codebook)
    step = Step("build", partial(BuildPart, run.store.url, codebook, run.executor.hardware()), "coder")
    work = Work.of(recorded(run.store.url, PartResult, step))
    return run.results(Stage("build", units, PartResult, work))


def plan_build(segments: Sequence[SegmentEntry], codebook: CodebookEntry) -> list[BuildUnit]:
    """Return one unit a segment."""
    stems = [layout.part(codebook.object.sha256, entry.object.sha256) for entry in segments]
    return [
        BuildUnit(layout.record(stem), stem, entry.object, entry.rows)
        for stem, entry in zip(stems, segments, strict=True)
    ]


def build_need(unit: BuildUnit, dim: int, code_bytes: int) -> Need:
    """Estimate what coding a segment takes: its vectors in memory, the part on disk. Pure."""
    part_bytes = unit.rows * (code_bytes + ROW_BYTES)
    vector_bytes = unit.rows * dim * FLOAT16_BYTES
    return Need(part_bytes, part_bytes, memory_bytes=vector_bytes)


class BuildPart:
    """Codes one segment's vectors with the codebook."""

    def __init__(self, store_url: str, codebook: CodebookEntry, hardware: Hardware) -> None:
        self._store, self._entry = open_store(store_url), codebook
        self._codebook, self._coder = _codebook_of(store_url, codebook.object, hardware)

    def __call__(self, unit: BuildUnit) -> PartResult:
        need = build_need(unit, self._codebook.d, core(self._codebook).code_size)
        fetched_bytes = bytes_to_fetch(self._store, unit.segment)
        check_room(self._store, "build", unit.record, replace(need, cache_bytes=fetched_bytes))
        vectors_ND = SegmentVectors.open(self._store, unit.segment, verify=True).all()
        with temporary_folder() as folder:
            part = build_part(self._codebook, vectors_ND, code=self._coder)
            path = Path(folder, "part.safetensors")
            write_part(part, path, self._entry.object.sha256)
            far = farthest_rows(part.distances_N, vectors_ND, self._entry.far_distance).put(
                self._store, f"{unit.stem}.far"
            )
            return PartResult(rows=unit.rows, part=put_object(self._store, unit.stem, path), far=far)


def farthest_rows(distances_N: npt.NDArray[np.float32], vectors_ND: Vectors, far_distance: float | None) -> LooseRows:
    """Return the rows that are farther than `far_distance`, at most the MAX_FAR farthest. Pure."""
    rows = np.flatnonzero(distances_N > far_distance) if far_distance is not None else np.empty(0, np.int64)
    rows = np.sort(rows[np.argsort(-distances_N[rows], kind="stable")][:MAX_FAR])
    return replace(LooseRows.of_segment(0, rows, vectors_ND[rows]), distances_N=distances_N[rows])


@functools.lru_cache(maxsize=1)  # a process that builds many parts reads the codebook once
def _codebook_of(store_url: str, ref: ObjectRef, hardware: Hardware) -> tuple[Any, Coder]:
    codebook = read_faiss(fetch_object(open_store(store_url), ref))
    return codebook, coder(codebook, hardware)
