"""The merge stage: all parts into the serving index, one unit a shard.

Shapes: N rows, D dimensions, n sampled rows.
"""

import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from dpr import layout
from dpr.deletions import live_rows, read_deletions
from dpr.errors import IntegrityError
from dpr.fingerprint import fingerprint
from dpr.index.merge import READERS, ROW_BITS, ROW_MASK, PartRef, build_whole, merge
from dpr.index.train import read_index
from dpr.index.verify import decoded_sample, verify
from dpr.manifest import CodebookEntry, IndexEntry, SegmentEntry, ShardEntry
from dpr.pipeline.execute import Unit
from dpr.pipeline.index import IndexContext, vectors_of_segment
from dpr.records import Record, fetch_object, open_verified, put_object, read_record
from dpr.segment import read_rows, vectors_of
from dpr.store import Store, open_store
from dpr.store.reader import open_object

ERROR_SAMPLE_ROWS = 1_000

Shard = tuple[SegmentEntry, ...]


def plan_shards(segments: Sequence[SegmentEntry], wanted: int) -> list[Shard]:
    """Contiguous runs of the segments that have live rows, at most `wanted`, as even in live rows as segments allow.

    A segment belongs to the shard that the middle of its live rows falls into when all live rows are cut evenly, so no
    shard exceeds its share by more than one segment.
    """
    living = [entry for entry in segments if entry.live_rows]
    live = np.array([entry.live_rows for entry in living], np.int64)
    twice_middles = 2 * np.cumsum(live) - live
    places = twice_middles * wanted // (2 * live.sum()) if len(live) else live
    return [tuple(e for e, p in zip(living, places, strict=True) if p == place) for place in np.unique(places)]


def shard_id(context: IndexContext, codebook: CodebookEntry, shard: Shard) -> str:
    """Fingerprint of everything that a shard depends on."""
    return fingerprint({"codebook": codebook.codebook_id, "segments": replace(context, segments=shard).state})


def merge_units(context: IndexContext, codebook: CodebookEntry, bytes_per_vector: int) -> list[Unit]:
    """One unit for each shard of the serving index."""
    units = []
    for shard in plan_shards(context.segments, context.config.shards):
        name = layout.index(shard_id(context, codebook, shard))
        rows = sum(entry.live_rows for entry in shard)
        units.append(
            {
                "record": layout.record(name),
                "rows": rows,
                "read_bytes": rows * bytes_per_vector,
                "object": name,
                "segments": [entry.number for entry in shard],
            }
        )
    return units


def index_entry(units: Sequence[Unit], records: Sequence[Record]) -> IndexEntry:
    """The serving index that merged shards make; its search settings are still to be tuned."""
    shards = [
        ShardEntry(
            rows=record.rows,
            first_segment=unit["segments"][0],
            last_segment=unit["segments"][-1],
            object=record.objects[0],
        )
        for unit, record in zip(units, records, strict=True)
    ]
    names = [shard.object.name for shard in shards]
    rows = sum(shard.rows for shard in shards)
    return IndexEntry(index_id=fingerprint(names), rows=rows, nprobe=1, rescore=0, shards=shards)


def shard_reports(store: Store, index: IndexEntry) -> list[dict[str, Any]]:
    """The verification report of each shard, as its merge recorded it."""
    reports = []
    for shard in index.shards:
        record = read_record(store, layout.record(shard.object.name))
        reports.append(
            {
                "segments": f"{shard.first_segment} to {shard.last_segment}",
                "rows": shard.rows,
                "bytes": shard.object.size_bytes,
                **(record.facts if record else {}),
            }
        )
    return reports


class MergeShard:
    """Merges the parts of a run of segments into one FAISS index, leaving dead rows out, and verifies it."""

    def __init__(self, context: IndexContext, codebook: CodebookEntry, *, mergeable: bool) -> None:
        self._context, self._codebook, self._mergeable = context, codebook, mergeable

    def __call__(self, unit: Unit) -> Unit:
        store = open_store(self._context.store_url)
        shard = [entry for entry in self._context.segments if entry.number in set(unit["segments"])]
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            codebook = read_index(fetch_object(store, self._codebook.object, folder))
            path = folder / "index.faiss"
            if self._mergeable:
                rows = merge(codebook, self._parts(store, shard), path)
            else:
                rows = build_whole(codebook, _live_vectors(store, shard, folder), path)
            facts = self._verify(store, shard, path)
            ref = put_object(store, unit["object"], path)
        record = Record(unit=f"merge-{unit['segments'][0]}", rows=rows, objects=[ref], facts=facts)
        return {"record": unit["record"], "done": record.to_bytes()}

    def _parts(self, store: Store, shard: Sequence[SegmentEntry]) -> list[PartRef]:
        def part(entry: SegmentEntry) -> PartRef:
            name = layout.part(self._codebook.codebook_id, entry.segment_id)
            record = Record.model_validate_json(store.get(layout.record(name)))
            try:
                file = open_verified(store, record.objects[0])
            except IntegrityError as error:
                raise IntegrityError(
                    f"{error}; delete {layout.record(name)}, and the next run makes it anew"
                ) from error
            return PartRef(entry.number, file, entry.rows, read_deletions(store, entry))

        with ThreadPoolExecutor(READERS) as pool:
            return list(pool.map(part, shard))

    def _verify(self, store: Store, shard: Sequence[SegmentEntry], path: Path) -> dict[str, Any]:
        """The verification report: counts, ids, lists, and the error of what is stored against the segments."""
        index = read_index(path, mapped=True)
        facts = asdict(verify(index, sum(entry.live_rows for entry in shard), path))
        sample = decoded_sample(index, ERROR_SAMPLE_ROWS, self._context.config.seed)
        if sample is not None:
            facts["quantisation_error"] = relative_error(store, shard, *sample)
            facts["error_rows"] = len(sample[0])
        return facts


def relative_error(
    store: Store, segments: Sequence[SegmentEntry], ids_n: npt.NDArray[np.int64], vectors_nD: npt.NDArray[np.float32]
) -> float:
    """Mean squared error of vectors that an index holds under `ids_n`, over the mean squared norm of those stored."""
    squared_error = squared_norm = 0.0
    for entry in segments:
        mine = np.flatnonzero(ids_n >> ROW_BITS == entry.number)
        if len(mine):
            rows = ids_n[mine] & ROW_MASK
            order = np.argsort(rows)  # as `read_rows` gives them
            table = read_rows(open_object(store, entry.object.name), ["embedding"], rows)
            stored_nD = vectors_of(table).astype(np.float64)
            squared_error += float(np.square(vectors_nD[mine[order]] - stored_nD).sum())
            squared_norm += float(np.square(stored_nD).sum())
    return squared_error / squared_norm if squared_norm else 0.0


def _live_vectors(
    store: Store, shard: Sequence[SegmentEntry], folder: Path
) -> Iterator[tuple[int, npt.NDArray[np.int64], npt.NDArray[np.float16]]]:
    for entry in shard:
        rows = live_rows(store, entry)
        vectors_ND = vectors_of_segment(fetch_object(store, entry.object, folder))
        yield entry.number, rows, vectors_ND[rows]
