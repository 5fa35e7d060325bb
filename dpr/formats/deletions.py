"""Sets of rows of segments, one object each: the deletion set of a snapshot, and what an index shard leaves out.

Segments are never rewritten: the deletion set names the rows whose passages are no longer in the corpus.
"""

import hashlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from dpr.errors import IntegrityError
from dpr.formats import layout
from dpr.formats.manifest import SegmentEntry
from dpr.formats.objects import fetch_object, put_object, read_table
from dpr.formats.records import ObjectRef
from dpr.store import Store
from dpr.store.temporary import temporary_folder

Rows = npt.NDArray[np.uint32]
_SCHEMA = pa.schema([pa.field("segment", pa.uint32(), nullable=False), pa.field("row", pa.uint32(), nullable=False)])
_STORED: dict[str, object] = {
    "compression": "zstd",
    "use_dictionary": ["segment"],  # one of row numbers, which hardly repeat, would take ten times their memory
    "column_encoding": {"row": "DELTA_BINARY_PACKED"},
}
_NO_ROWS: Rows = np.empty(0, np.uint32)


class RowSet:
    """Row numbers by segment number, each array sorted."""

    def __init__(self, rows: Mapping[int, Rows]) -> None:
        self._rows = {number: array for number, array in rows.items() if len(array)}

    def rows(self, number: int) -> Rows:
        """Return the sorted rows of a segment; an empty array if the set names none."""
        return self._rows.get(number, _NO_ROWS)

    def put(self, store: Store, stem: str = layout.deletions()) -> ObjectRef | None:
        """Store the set and return its reference; None, and nothing stored, if it is empty.

        `stem`: what the object's name begins with; by default that of deletion sets.
        """
        if not self._rows:
            return None
        numbers = sorted(self._rows)
        segments = np.repeat(np.array(numbers, np.uint32), [len(self._rows[number]) for number in numbers])
        rows = np.concatenate([self._rows[number] for number in numbers])
        with temporary_folder() as folder:
            path = Path(folder, "rows.parquet")
            pq.write_table(pa.table([segments, rows], schema=_SCHEMA), path, **_STORED)
            return put_object(store, stem, path)


class DeletionSet(RowSet):
    """The dead rows of a snapshot."""

    def dead_rows(self, entry: SegmentEntry) -> Rows:
        """Return the sorted dead rows of a segment. Raises IntegrityError if they are not those the entry counts."""
        rows = self.rows(entry.number)
        if (len(rows), dead_digest(rows)) != (entry.dead_rows, entry.dead_digest):
            raise IntegrityError(
                f"the deletion set names {len(rows)} dead rows of segment {entry.segment_id}, and they are not the "
                f"{entry.dead_rows} that the snapshot counts; roll back to a sound snapshot or run the recipe again"
            )
        return rows

    def live_mask(self, entry: SegmentEntry) -> npt.NDArray[np.bool_]:
        """Return which of the N rows of a segment live, as a mask (N,). Raises IntegrityError as `dead_rows` does."""
        lives_N = np.ones(entry.rows, np.bool_)
        lives_N[self.dead_rows(entry)] = False
        return lives_N

    def live_rows(self, entry: SegmentEntry) -> npt.NDArray[np.int64]:
        """Return the sorted live row numbers of a segment. Raises IntegrityError as `dead_rows` does."""
        return np.flatnonzero(self.live_mask(entry))


def dead_digest(rows: Rows) -> str:
    """Return a fingerprint of sorted row numbers; empty for none."""
    return hashlib.blake2b(rows.astype("<u4").tobytes(), digest_size=8).hexdigest() if len(rows) else ""


def with_dead(entry: SegmentEntry, dead: Rows) -> SegmentEntry:
    """Return the entry with these dead rows counted in it."""
    return entry.model_copy(update={"dead_rows": len(dead), "dead_digest": dead_digest(dead)})


def read_deletions(store: Store, ref: ObjectRef | None) -> DeletionSet:
    """Return the deletion set of a snapshot, verified; an empty one for None."""
    return DeletionSet(_read(store, ref))


def read_row_set(store: Store, ref: ObjectRef | None) -> RowSet:
    """Return a set of rows, verified; an empty one for None."""
    return RowSet(_read(store, ref))


def _read(store: Store, ref: ObjectRef | None) -> dict[int, Rows]:
    if ref is None:
        return {}
    table = read_table(fetch_object(store, ref))  # several stages of a run read the same set
    segments, rows = table["segment"].to_numpy(), table["row"].to_numpy()
    starts = np.flatnonzero(np.diff(segments)) + 1  # the rows of a segment lie together
    return dict(zip(segments[[0, *starts]].tolist(), np.split(rows, starts), strict=True))
