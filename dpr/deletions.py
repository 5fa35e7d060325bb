"""Deletion sets: which rows of a segment are dead as of a snapshot. Segments themselves are never rewritten."""

import hashlib
import tempfile
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from dpr import layout
from dpr.manifest import Deletions, SegmentEntry
from dpr.records import put_object
from dpr.store import Store
from dpr.store.reader import open_object


def read_deletions(store: Store, entry: SegmentEntry) -> npt.NDArray[np.uint32]:
    """The sorted dead row numbers of a segment as of a snapshot."""
    if entry.deletions is None:
        return np.empty(0, np.uint32)
    rows: npt.NDArray[np.uint32] = pq.read_table(open_object(store, entry.deletions.object.name))["row"].to_numpy()
    return rows


def store_deletions(store: Store, segment_id: str, dead: npt.NDArray[np.uint32]) -> Deletions:
    """Store the sorted dead row numbers of a segment as a deletion set."""
    digest = hashlib.blake2b(dead.tobytes(), digest_size=8).hexdigest()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "deletions.parquet")
        pq.write_table(pa.table({"row": pa.array(dead, pa.uint32())}), path)
        return Deletions(rows=len(dead), object=put_object(store, layout.deletions(segment_id, digest), path))


def live_rows(store: Store, entry: SegmentEntry) -> npt.NDArray[np.int64]:
    """The sorted live row numbers of a segment as of a snapshot."""
    lives = np.ones(entry.rows, np.bool_)
    lives[read_deletions(store, entry)] = False
    return np.flatnonzero(lives)
