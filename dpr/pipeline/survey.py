"""Looking at a corpus before a run: its slices in random order, as many as fit the time, scanned and compared for real.

The results go to a folder of this machine, laid over the store, so that nothing is written to the store itself.
"""

import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from dpr import layout
from dpr.corpus.diff import Changes, find_changes
from dpr.corpus.plan import slice_bytes
from dpr.corpus.scan import scan_slice
from dpr.pipeline.run import Run
from dpr.pipeline.scan import load_known_keys
from dpr.records import Record
from dpr.segment import passage_schema
from dpr.store import Store
from dpr.store.overlay import OverlayStore
from dpr.store.reader import open_object

SURVEY_SECONDS = 20.0
SAMPLE_ROWS = 4_000
"""Passages whose tokens are counted: their mean is then known to about a hundredth."""


@dataclass(frozen=True)
class Survey:
    """What was found in the slices that were read."""

    slices: int
    slices_read: int
    corpus_bytes: int
    bytes_read: int
    seconds: float
    """That reading and hashing them took one core."""
    rows: int
    """Usable and unusable."""
    quarantined: int
    changes: Changes
    """Of these slices alone."""
    new_row_bytes: float
    sample: pa.Table
    """Title and text of new passages, a random choice."""

    @property
    def exact(self) -> bool:
        """Whether all of the corpus was read."""
        return self.slices_read == self.slices

    @property
    def scale(self) -> float:
        """By how much counts are multiplied to stand for the whole corpus."""
        return 1.0 if self.exact else self.corpus_bytes / self.bytes_read


def survey(run: Run, seconds: float = SURVEY_SECONDS) -> Survey:
    """Scan slices of the run's corpus in random order until `seconds` are spent or all are read; at least one."""
    sizes_bytes = slice_bytes(run.slices)
    segments = run.base.body.segments if run.base else []
    known = load_known_keys(run.store.url, [entry.object.name for entry in segments])
    with tempfile.TemporaryDirectory() as folder:
        store = OverlayStore(Path(folder), run.store)
        scans: dict[int, Record] = {}
        started = time.perf_counter()
        for number in np.random.default_rng(0).permutation(len(run.slices)).tolist():
            scans[number] = scan_slice(store, run.run_id, number, run.slices[number], run.recipe.corpus, known)
            if time.perf_counter() - started > seconds:
                break
        spent = time.perf_counter() - started
        numbers = sorted(scans)
        _close_gaps(Path(folder), run.run_id, numbers)
        inputs = run.diff_inputs([run.slices[number] for number in numbers])
        records = [scans[number] for number in numbers]
        changes = Changes.model_validate(find_changes(store, inputs, records).facts)
        sample, row_bytes = _new_passages(store, run.run_id, records)
    return Survey(
        slices=len(run.slices),
        slices_read=len(scans),
        corpus_bytes=sum(sizes_bytes),
        bytes_read=sum(sizes_bytes[number] for number in numbers),
        seconds=spent,
        rows=sum(record.rows for record in records) + sum(record.facts["quarantined"] for record in records),
        quarantined=sum(record.facts["quarantined"] for record in records),
        changes=changes,
        new_row_bytes=row_bytes,
        sample=sample,
    )


def _close_gaps(folder: Path, run_id: str, numbers: list[int]) -> None:
    """Rename what the slices gave as if there were no others: the comparison takes them as 0, 1, 2, …"""
    for new, old in enumerate(numbers):
        for name in (layout.scan_keys, layout.scan_shard):
            if (folder / name(run_id, old)).exists():
                (folder / name(run_id, old)).rename(folder / name(run_id, new))


def _new_passages(store: Store, run_id: str, scans: list[Record]) -> tuple[pa.Table, float]:
    """Title and text of `SAMPLE_ROWS` new passages, and the stored bytes of a new passage."""
    counts = np.array([scan.facts["new"] for scan in scans])
    chosen = np.random.default_rng(0).permutation(counts.sum())[:SAMPLE_ROWS]
    starts = np.concatenate([[0], np.cumsum(counts)])
    tables, size_bytes = [passage_schema().empty_table().select(["title", "text"])], 0
    for number in np.flatnonzero(counts).tolist():
        name = layout.scan_shard(run_id, number)
        mine = chosen[(chosen >= starts[number]) & (chosen < starts[number + 1])] - starts[number]
        tables.append(pq.read_table(open_object(store, name), columns=["title", "text"]).take(pa.array(np.sort(mine))))
        size_bytes += store.size(name)
    return pa.concat_tables(tables), size_bytes / max(1, int(counts.sum()))
