"""The merge stage: all parts into the index, one unit a shard.

Shapes: N rows, D dimensions, n sampled rows.
"""

import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt

from dpr.engine.stage import Stage, Step, Work, recorded
from dpr.errors import IntegrityError
from dpr.fingerprint import fingerprint
from dpr.formats import layout
from dpr.formats.deletions import read_deletions
from dpr.formats.manifest import CodebookEntry, IndexEntry, SegmentEntry, ShardEntry
from dpr.formats.objects import fetch_object, open_verified, put_object
from dpr.formats.records import ObjectRef, Result
from dpr.index.contents import Verification, decoded_sample, verify
from dpr.index.merging import READERS, ROW_BITS, ROW_MASK, PartRef, build_whole, merge
from dpr.index.training import read_index
from dpr.run import Run
from dpr.search.vectors import SegmentVectors
from dpr.stages.drift import CodebookChoice
from dpr.stages.train import IndexContext, segments_state
from dpr.store import Store, open_store

ERROR_SAMPLE_ROWS = 1_000

Shard = tuple[SegmentEntry, ...]


@dataclass(frozen=True)
class MergeUnit:
    """One shard of the index: its segments, and the part of each."""

    record: str
    stem: str
    """What the name of its object begins with."""
    segments: Shard
    parts: tuple[ObjectRef, ...]
    rows: int
    read_bytes: int


class ShardResult(Result):
    """A shard of the index; `rows` are its vectors."""

    shard: ObjectRef
    verification: Verification


def merge_index(
    run: Run, context: IndexContext, codebook: CodebookEntry, choice: CodebookChoice, parts: Sequence[ObjectRef]
) -> tuple[IndexEntry, list[ShardResult]]:
    """Merge all parts into the shards of the index."""
    units = plan_merge(context, codebook, dict(zip(context.segments, parts, strict=True)), choice.plan.bytes_per_vector)
    step = Step("merge", partial(MergeShard, context, codebook, mergeable=choice.plan.mergeable))
    work = Work.of(recorded(context.store_url, ShardResult, step))
    results = run.results(Stage("merge", units, ShardResult, work))
    return index_entry(units, results), results


def plan_merge(
    context: IndexContext, codebook: CodebookEntry, parts: dict[SegmentEntry, ObjectRef], bytes_per_vector: int
) -> list[MergeUnit]:
    """Return one unit a shard; its record is named by everything that the shard depends on."""
    units = []
    for shard in plan_shards(context.segments, context.config.shards):
        shard_id = fingerprint({"codebook": codebook.object.sha256, "segments": segments_state(shard)})
        stem = layout.index(shard_id)
        rows = sum(entry.live_rows for entry in shard)
        shard_parts = tuple(parts[entry] for entry in shard) if parts else ()
        units.append(MergeUnit(layout.record(stem), stem, shard, shard_parts, rows, rows * bytes_per_vector))
    return units


def plan_shards(segments: Sequence[SegmentEntry], max_shards: int) -> list[Shard]:
    """Cut the segments that have live rows into at most `max_shards` contiguous runs, as even as segments allow. Pure.

    A segment belongs to the shard that the middle of its live rows falls into when all live rows are cut evenly, so no
    shard exceeds its share by more than one segment.
    """
    living = [entry for entry in segments if entry.live_rows]
    live = np.array([entry.live_rows for entry in living], np.int64)
    twice_middles = 2 * np.cumsum(live) - live
    places = twice_middles * max_shards // (2 * live.sum()) if len(live) else live
    return [tuple(e for e, p in zip(living, places, strict=True) if p == place) for place in np.unique(places)]


def index_entry(units: Sequence[MergeUnit], results: Sequence[ShardResult]) -> IndexEntry:
    """Return the index that merged shards make; its search settings are still to be tuned."""
    shards = [
        ShardEntry(
            rows=result.rows,
            first_segment=unit.segments[0].number,
            last_segment=unit.segments[-1].number,
            object=result.shard,
        )
        for unit, result in zip(units, results, strict=True)
    ]
    names = [shard.object.name for shard in shards]
    rows = sum(shard.rows for shard in shards)
    return IndexEntry(index_id=fingerprint(names), rows=rows, nprobe=1, rescore=0, shards=shards)


class MergeShard:
    """Merges the parts of a run of segments into one FAISS index, leaving dead rows out, and verifies it."""

    def __init__(self, context: IndexContext, codebook: CodebookEntry, *, mergeable: bool) -> None:
        self._context, self._codebook, self._mergeable = context, codebook, mergeable

    def __call__(self, unit: MergeUnit) -> ShardResult:
        store = open_store(self._context.store_url)
        codebook = read_index(fetch_object(store, self._codebook.object))
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, "index.faiss")
            if self._mergeable:
                rows = merge(codebook, self._parts(store, unit), path)
            else:
                rows = build_whole(codebook, self._live_vectors(store, unit), path)
            verification = self._verify(store, unit, path)
            return ShardResult(rows=rows, shard=put_object(store, unit.stem, path), verification=verification)

    def _parts(self, store: Store, unit: MergeUnit) -> list[PartRef]:
        deletions = read_deletions(store, self._context.deletions)

        def part(entry: SegmentEntry, ref: ObjectRef) -> PartRef:
            try:
                file = open_verified(store, ref)
            except IntegrityError as error:
                record = layout.record(layout.part(self._codebook.object.sha256, entry.object.sha256))
                raise IntegrityError(f"{error}; delete it and {record}, and the next run makes both again") from error
            dead_rows = deletions.dead_rows(entry)
            return PartRef(entry.number, file, entry.rows, dead_rows, self._codebook.object.sha256)

        with ThreadPoolExecutor(READERS) as pool:
            return list(pool.map(part, unit.segments, unit.parts))

    def _live_vectors(
        self, store: Store, unit: MergeUnit
    ) -> Iterator[tuple[int, npt.NDArray[np.int64], npt.NDArray[np.float16]]]:
        deletions = read_deletions(store, self._context.deletions)
        for entry in unit.segments:
            rows = deletions.live_rows(entry)
            yield entry.number, rows, SegmentVectors.open(store, entry.object, verify=True).all()[rows]

    def _verify(self, store: Store, unit: MergeUnit, path: Path) -> Verification:
        """Counts, ids, lists, and the error of what is stored against the segments."""
        index = read_index(path, mapped=True)
        found = verify(index, unit.rows, path)
        sample = decoded_sample(index, ERROR_SAMPLE_ROWS, self._context.config.seed)
        if sample is None:
            return found
        error = relative_error(store, unit.segments, *sample)
        return found.model_copy(update={"quantisation_error": error, "error_rows": len(sample[0])})


def relative_error(
    store: Store, segments: Sequence[SegmentEntry], ids_n: npt.NDArray[np.int64], vectors_nD: npt.NDArray[np.float32]
) -> float:
    """Return the mean squared error of vectors that an index holds under `ids_n`, over the mean squared norm of those
    stored."""
    squared_error = squared_norm = 0.0
    for entry in segments:
        places = np.flatnonzero(ids_n >> ROW_BITS == entry.number)
        if len(places):
            rows = ids_n[places] & ROW_MASK
            stored_nD = SegmentVectors.open(store, entry.object).rows(rows).astype(np.float64)
            squared_error += float(np.square(vectors_nD[places] - stored_nD).sum())
            squared_norm += float(np.square(stored_nD).sum())
    return squared_error / squared_norm if squared_norm else 0.0
