"""The build stage: code the vectors of each segment with the codebook, once, into a part.

A part is named by the bytes of its codebook and of its segment, so it never meets another codebook.
"""

import functools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from dpr.engine.room import Need, check_room
from dpr.engine.stage import Stage, Step, Work, recorded
from dpr.formats import layout
from dpr.formats.manifest import CodebookEntry, SegmentEntry
from dpr.formats.objects import bytes_to_fetch, fetch_object, put_object
from dpr.formats.records import ObjectRef, Result
from dpr.formats.segment import FLOAT16_BYTES
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


@dataclass(frozen=True)
class BuildUnit:
    """One segment to code."""

    record: str
    stem: str
    """What the name of its object begins with."""
    segment: ObjectRef
    rows: int

    @property
    def read_bytes(self) -> int:
        return self.segment.size_bytes


class PartResult(Result):
    """A part; `rows` are all rows of its segment, dead ones included."""

    part: ObjectRef


def build(
    run: Run, segments: Sequence[SegmentEntry], codebook: CodebookEntry, choice: CodebookChoice
) -> list[ObjectRef]:
    """Code the segments that have no part yet; returns the part of each. An index of a kind without parts has none."""
    if not choice.plan.mergeable:
        return []
    units = plan_build(segments, codebook)
    step = Step("build", partial(BuildPart, run.store.url, codebook.object, run.executor.hardware()), "coder")
    work = Work.of(recorded(run.store.url, PartResult, step))
    return [result.part for result in run.results(Stage("build", units, PartResult, work))]


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

    def __init__(self, store_url: str, codebook: ObjectRef, hardware: Hardware) -> None:
        self._store, self._codebook_sha256 = open_store(store_url), codebook.sha256
        self._codebook, self._coder = _codebook_of(store_url, codebook, hardware)

    def __call__(self, unit: BuildUnit) -> PartResult:
        need = build_need(unit, self._codebook.d, core(self._codebook).code_size)
        fetched_bytes = bytes_to_fetch(self._store, unit.segment)
        check_room(self._store, "build", unit.record, replace(need, cache_bytes=fetched_bytes))
        vectors_ND = SegmentVectors.open(self._store, unit.segment, verify=True).all()
        with temporary_folder() as folder:
            part = build_part(self._codebook, vectors_ND, code=self._coder)
            path = Path(folder, "part.safetensors")
            write_part(part, path, self._codebook_sha256)
            return PartResult(rows=unit.rows, part=put_object(self._store, unit.stem, path))


@functools.lru_cache(maxsize=1)  # a process that builds many parts reads the codebook once
def _codebook_of(store_url: str, ref: ObjectRef, hardware: Hardware) -> tuple[Any, Coder]:
    codebook = read_faiss(fetch_object(open_store(store_url), ref))
    return codebook, coder(codebook, hardware)
