"""A survey of a corpus before a run: as many slices as fit the time are scanned and compared, in random order.

The results go to a folder of this machine, laid over the store, so that nothing is written to the store itself.
"""

import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from dpr.corpus.long_texts import load_splitter
from dpr.formats.objects import open_parts
from dpr.formats.segment import passage_schema, read_rows
from dpr.run import Run
from dpr.stages.diff import Changes, find_changes, plan_diff
from dpr.stages.scan import ScanResult, load_known_keys, plan_scan, scan_slice
from dpr.store import Store
from dpr.store.overlay import OverlayStore
from dpr.store.temporary import temporary_folder

SURVEY_SECONDS = 20.0
SAMPLE_ROWS = 4_000
"""Passages whose tokens are counted: their mean is then known to about a hundredth."""


@dataclass(frozen=True)
class Survey:
    """The findings in the slices that were read."""

    slices: int
    slices_read: int
    corpus_bytes: int
    bytes_read: int
    seconds: float
    """Time that one core took to read and hash them."""
    rows: int
    """Usable and unusable."""
    quarantined: int
    changes: Changes
    """Of these slices alone."""
    segment_rows: int
    """Rows of a segment, at most."""
    new_row_bytes: float
    sample: pa.Table
    """Title and text of new passages, a random choice."""

    @property
    def exact(self) -> bool:
        """Return whether the whole corpus was read."""
        return self.slices_read == self.slices

    @property
    def scale(self) -> float:
        """Return the factor from counts of these slices to the whole corpus."""
        return 1.0 if self.exact else self.corpus_bytes / self.bytes_read


def survey(run: Run, seconds: float = SURVEY_SECONDS) -> Survey:
    """Scan slices of the run's corpus in random order until `seconds` are spent or all are read; at least one."""
    units = plan_scan(run)
    sizes_bytes = [slice_.size_bytes for slice_ in run.slices]
    known = load_known_keys(run.store.url, [*run.base_segments, *run.retired])
    if (windows := run.slices[0].windows) is not None:
        load_splitter(windows)  # done once, so not part of the time that slices take
    with temporary_folder() as folder:
        store = OverlayStore(Path(folder), run.store)
        scans: dict[int, ScanResult] = {}
        started = time.perf_counter()
        for number in np.random.default_rng(0).permutation(len(units)).tolist():
            scans[number] = scan_slice(store, run.recipe.corpus, known, units[number])
            if time.perf_counter() - started > seconds:
                break
        spent = time.perf_counter() - started
        numbers = sorted(scans)
        results = [scans[number] for number in numbers]
        unit = plan_diff(
            run, [run.slices[number] for number in numbers], results, max_duplicates=sum(r.rows for r in results)
        )
        changes = find_changes(store, unit)
        sample = _new_passages(store, results)
    new_rows = sum(result.new_rows for result in results)
    return Survey(
        slices=len(units),
        slices_read=len(scans),
        corpus_bytes=sum(sizes_bytes),
        bytes_read=sum(sizes_bytes[number] for number in numbers),
        seconds=spent,
        rows=sum(result.rows + result.unusable_rows for result in results),
        quarantined=sum(result.unusable_rows for result in results),
        changes=changes,
        segment_rows=unit.segment_rows,
        new_row_bytes=sum(r.passages.size_bytes for r in results if r.passages) / max(1, new_rows),
        sample=sample,
    )


def _new_passages(store: Store, scans: list[ScanResult]) -> pa.Table:
    """Return title and text of `SAMPLE_ROWS` new passages, drawn at random. Raises IntegrityError for damaged ones."""
    counts = np.array([scanned.new_rows for scanned in scans])
    chosen = np.random.default_rng(0).permutation(counts.sum())[:SAMPLE_ROWS]
    starts = np.concatenate([[0], np.cumsum(counts)])
    tables = [passage_schema().empty_table().select(["title", "text"])]
    for number, scanned in enumerate(scans):
        if scanned.passages is not None:
            rows = chosen[(chosen >= starts[number]) & (chosen < starts[number + 1])] - starts[number]
            tables.append(read_rows(open_parts(store, scanned.passages), ["title", "text"], rows))
    return pa.concat_tables(tables)
