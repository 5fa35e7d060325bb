"""The merge stage: parts into shards of the index, one unit a shard; shards that need no rewriting are kept.

Shapes: N rows, D dimensions, n sampled rows.
"""

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt

from dpr.engine.room import Need, check_room
from dpr.engine.stage import Stage, Step, Work, recorded
from dpr.errors import IntegrityError
from dpr.fingerprint import fingerprint
from dpr.formats import layout
from dpr.formats.deletions import RowSet, dead_digest, read_row_set
from dpr.formats.manifest import CodebookEntry, IndexEntry, SegmentEntry, ShardEntry
from dpr.formats.objects import fetch_into, fetch_object, file_sha256, put_object
from dpr.formats.records import ObjectRef, Result
from dpr.index.contents import Verification, decoded_sample, verify_index
from dpr.index.faiss_file import read_faiss
from dpr.index.kinds import Storage, storage
from dpr.index.live_parts import PartRef
from dpr.index.merging import BUFFER_BYTES, build_whole, merge
from dpr.index.row_ids import ROW_BITS, ROW_MASK
from dpr.run import Run
from dpr.search.vectors import SegmentVectors
from dpr.stages.build import PartResult
from dpr.stages.drift import CodebookChoice
from dpr.stages.loose_rows import plan_loose
from dpr.stages.shard_rows import ShardRows, plan_shards, rows_now
from dpr.stages.train import IndexContext
from dpr.store import PARALLEL_READS, Store, open_store
from dpr.store.temporary import temporary_folder

ERROR_SAMPLE_ROWS = 1_000
BUFFERED_BYTES = 4 * BUFFER_BYTES
"""Memory that merging a large shard takes at least; the docstring of `merge` has the upper bound."""


@dataclass(frozen=True)
class MergeUnit:
    """One shard to write: its segments, the part of each, and the rows of them that it leaves out."""

    record: str
    stem: str
    """Start of the name of its object."""
    segments: tuple[SegmentEntry, ...]
    parts: tuple[ObjectRef, ...]
    left_out: ObjectRef | None
    rows: int
    read_bytes: int

    def need(self, codebook_bytes: int, kept: Storage, *, is_remote: bool) -> Need:
        """Estimate the need of merging: inverted lists are written range by range, other kinds (`kept`) whole.

        The shard lies in the temporary folder before it is stored, together with the parts of a remote store.
        """
        has_lists = kept in (Storage.ARRAY_LISTS, Storage.BLOCK_LISTS)
        shard_bytes = self.read_bytes + codebook_bytes * has_lists
        part_bytes = sum(part.size_bytes for part in self.parts) if is_remote else 0
        in_memory_bytes = min(self.read_bytes, BUFFERED_BYTES) if has_lists else self.read_bytes
        return Need(
            temporary_bytes=shard_bytes + part_bytes,
            store_bytes=shard_bytes,
            memory_bytes=in_memory_bytes + 2 * codebook_bytes,  # it is serialised, then cut after its centroids
            smaller="raise index.shards",
        )


class ShardResult(Result):
    """A shard of the index; `rows` are its vectors."""

    shard: ObjectRef
    verification: Verification


def merge_index(
    run: Run, context: IndexContext, codebook: CodebookEntry, choice: CodebookChoice, parts: Sequence[PartResult]
) -> tuple[IndexEntry, list[ShardResult]]:
    """Write the shards that this night needs; returns the index of old and new ones, and the written shards."""
    base = run.base.body if run.base else None
    stays = base and base.codebook.object == codebook.object and base.index.first_shards == context.config.shards
    old = base.index.shards if base and stays else []
    numbers = [entry.number for entry in context.segments]
    part_of = dict(zip(numbers, parts, strict=choice.plan.mergeable))
    now = rows_now(run.store, context, old)
    loose, loose_rows = plan_loose(run.store, context, now, base.index if base and stays else None, part_of)
    plan = plan_shards(context, now, loose)
    units = [_unit(run.store, context, codebook, rows, part_of, choice) for rows in plan.new]
    step = Step("merge", partial(MergeShard, context, codebook, mergeable=choice.plan.mergeable))
    work = Work.of(recorded(context.store_url, ShardResult, step))
    results = run.results(Stage("merge", units, ShardResult, work))
    shards = [*plan.kept, *map(_new_shard, units, results)]
    return _index_entry(shards, loose_rows.put(run.store, layout.loose()), len(loose_rows), context), results


def _unit(
    store: Store,
    context: IndexContext,
    codebook: CodebookEntry,
    masks: ShardRows,
    part_of: Mapping[int, PartResult],
    choice: CodebookChoice,
) -> MergeUnit:
    """Return the unit of a shard; its record is named by everything that the shard depends on."""
    segments = tuple(entry for entry in context.segments if entry.number in masks)
    left_out, rows = {}, 0
    for number, mask in masks.items():
        left_out[number] = np.flatnonzero(~mask).astype(np.uint32)
        rows += int(mask.sum())
    state = [[str(e.number), e.object.sha256, dead_digest(left_out[e.number])] for e in segments]
    stem = layout.index(fingerprint({"codebook": codebook.object.sha256, "segments": state}))
    return MergeUnit(
        record=layout.record(stem),
        stem=stem,
        segments=segments,
        parts=tuple(part_of[entry.number].part for entry in segments) if part_of else (),
        left_out=RowSet(left_out).put(store, f"{stem}.left-out"),
        rows=rows,
        read_bytes=rows * choice.plan.bytes_per_vector,
    )


def _new_shard(unit: MergeUnit, result: ShardResult) -> ShardEntry:
    return ShardEntry(
        rows=result.rows,
        live_rows=result.rows,
        segments=[entry.number for entry in unit.segments],
        left_out=unit.left_out,
        object=result.shard,
    )


def _index_entry(
    shards: Sequence[ShardEntry], loose: ObjectRef | None, loose_rows: int, context: IndexContext
) -> IndexEntry:
    """Return the index of these shards and loose rows; its search settings are still to be tuned."""
    names = [shard.object.name for shard in shards] + ([loose.name] if loose else [])
    return IndexEntry(
        index_id=fingerprint(names),
        rows=sum(shard.live_rows for shard in shards) + loose_rows,
        nprobe=1,
        rescore=0,
        at=context.config.recall_at,
        deeper=None,
        shards=list(shards),
        loose=loose,
        loose_rows=loose_rows,
        first_shards=context.config.shards,
    )


class MergeShard:
    """Merges the parts of some segments into one FAISS index, leaving rows out, and verifies it."""

    def __init__(self, context: IndexContext, codebook: CodebookEntry, *, mergeable: bool) -> None:
        self._context, self._codebook, self._mergeable = context, codebook, mergeable

    def __call__(self, unit: MergeUnit) -> ShardResult:
        store = open_store(self._context.store_url)
        codebook = read_faiss(fetch_object(store, self._codebook.object))
        is_remote = store.local_path(unit.record) is None
        need = unit.need(self._codebook.object.size_bytes, storage(codebook), is_remote=is_remote)
        check_room(store, "merge", unit.record, need)
        with temporary_folder() as folder:
            path = Path(folder, "index.faiss")
            if self._mergeable:
                rows = merge(codebook, self._parts(store, unit, Path(folder)), path)
            else:
                rows = build_whole(codebook, self._live_vectors(store, unit), path)
            with ThreadPoolExecutor(1) as pool:  # hashing gigabytes takes as long as verifying them
                digest = pool.submit(file_sha256, path)
                verification = self._verify(store, unit, path)
                shard = put_object(store, unit.stem, path, digest.result())
            return ShardResult(rows=rows, shard=shard, verification=verification)

    def _parts(self, store: Store, unit: MergeUnit, folder: Path) -> list[PartRef]:
        # each is read once for every range of lists, so a remote one is fetched whole, into the folder of the index
        left_out = read_row_set(store, unit.left_out)

        def part(entry: SegmentEntry, ref: ObjectRef) -> PartRef:
            try:
                file = fetch_into(store, ref, folder)
            except IntegrityError as error:
                record = layout.record(layout.part(self._codebook.object.sha256, entry.object.sha256))
                raise IntegrityError(f"{error}; delete it and {record}, and the next run makes both again") from error
            return PartRef(entry.number, file, entry.rows, left_out.rows(entry.number), self._codebook.object.sha256)

        with ThreadPoolExecutor(PARALLEL_READS) as pool:
            return list(pool.map(part, unit.segments, unit.parts))

    def _live_vectors(
        self, store: Store, unit: MergeUnit
    ) -> Iterator[tuple[int, npt.NDArray[np.int64], npt.NDArray[np.float16]]]:
        left_out = read_row_set(store, unit.left_out)
        for entry in unit.segments:
            rows = np.setdiff1d(np.arange(entry.rows), left_out.rows(entry.number))
            yield entry.number, rows, SegmentVectors.open(store, entry.object, verify=True).all()[rows]

    def _verify(self, store: Store, unit: MergeUnit, path: Path) -> Verification:
        """Verify counts, ids and lists, and measure the error of sampled vectors against the segments."""
        index = read_faiss(path, mapped=True)
        found = verify_index(index, unit.rows, path)
        sample = decoded_sample(index, ERROR_SAMPLE_ROWS, self._context.config.seed)
        if sample is None:
            return found
        error = relative_error(store, unit.segments, *sample)
        return found.model_copy(update={"quantisation_error": error, "error_rows": len(sample[0])})


def relative_error(
    store: Store, segments: Sequence[SegmentEntry], ids_n: npt.NDArray[np.int64], vectors_nD: npt.NDArray[np.float32]
) -> float:
    """Return the mean squared error of an index's vectors `ids_n`, over the mean squared norm of the stored ones."""
    squared_error = squared_norm = 0.0
    for entry in segments:
        places = np.flatnonzero(ids_n >> ROW_BITS == entry.number)
        if len(places):
            rows = ids_n[places] & ROW_MASK
            stored_nD = SegmentVectors.open(store, entry.object).rows(rows).astype(np.float64)
            squared_error += float(np.square(vectors_nD[places] - stored_nD).sum())
            squared_norm += float(np.square(stored_nD).sum())
    return squared_error / squared_norm if squared_norm else 0.0
