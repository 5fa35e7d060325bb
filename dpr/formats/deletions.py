"""The deletion set of a snapshot: the dead rows of all its segments, in one object. Segments are never rewritten."""

import hashlib
import io
import tempfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from dpr.errors import IntegrityError
from dpr.formats import layout
from dpr.formats.manifest import SegmentEntry
from dpr.formats.objects import put_object, read_object
from dpr.formats.records import ObjectRef
from dpr.store import Store

Rows = npt.NDArray[np.uint32]
_SCHEMA = pa.schema([pa.field("segment", pa.uint32(), nullable=False), pa.field("row", pa.uint32(), nullable=False)])
_NO_ROWS: Rows = np.empty(0, np.uint32)


class DeletionSet:
    """Dead row numbers by segment number, each array sorted."""

    def __init__(self, dead: Mapping[int, Rows]) -> None:
        self._dead = {number: rows for number, rows in dead.items() if len(rows)}

    def dead_rows(self, entry: SegmentEntry) -> Rows:
        """Return the sorted dead rows of a segment. Raises IntegrityError if they are not those the entry counts."""
        rows = self._dead.get(entry.number, _NO_ROWS)
        if (len(rows), dead_digest(rows)) != (entry.dead_rows, entry.dead_digest):
            raise IntegrityError(
                f"the deletion set names {len(rows)} dead rows of segment {entry.segment_id}, and the snapshot counts "
                f"{entry.dead_rows} (or others); roll back to a sound snapshot or run the recipe again"
            )
        return rows

    def live_rows(self, entry: SegmentEntry) -> npt.NDArray[np.int64]:
        """Return the sorted live row numbers of a segment."""
        lives = np.ones(entry.rows, np.bool_)
        lives[self.dead_rows(entry)] = False
        return np.flatnonzero(lives)

    def put(self, store: Store) -> ObjectRef | None:
        """Store the set and return its reference; None, and nothing stored, if no row is dead."""
        if not self._dead:
            return None
        numbers = sorted(self._dead)
        segments = np.repeat(np.array(numbers, np.uint32), [len(self._dead[number]) for number in numbers])
        rows = np.concatenate([self._dead[number] for number in numbers])
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, "deletions.parquet")
            pq.write_table(pa.table([segments, rows], schema=_SCHEMA), path, compression="zstd")
            return put_object(store, layout.deletions(), path)


def dead_digest(rows: Rows) -> str:
    """Return a fingerprint of sorted row numbers; empty for none."""
    return hashlib.blake2b(rows.astype("<u4").tobytes(), digest_size=8).hexdigest() if len(rows) else ""


def with_dead(entry: SegmentEntry, dead: Rows) -> SegmentEntry:
    """Return the entry with these dead rows counted in it."""
    return entry.model_copy(update={"dead_rows": len(dead), "dead_digest": dead_digest(dead)})


def read_deletions(store: Store, ref: ObjectRef | None) -> DeletionSet:
    """Return the deletion set of a snapshot, verified; an empty one for None."""
    if ref is None:
        return DeletionSet({})
    table = pq.read_table(io.BytesIO(read_object(store, ref)))
    segments, rows = table["segment"].to_numpy(), table["row"].to_numpy()
    numbers, starts = np.unique(segments, return_index=True)
    return DeletionSet(dict(zip(numbers.tolist(), np.split(rows, starts[1:]), strict=True)))
