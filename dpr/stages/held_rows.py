"""The two sides of the diff: the rows of the corpus, and the rows that segments hold; and which segments stay.

Shapes: N rows.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from dpr.corpus.compaction import segments_to_copy
from dpr.corpus.hashes import first_of_each
from dpr.corpus.rows import Slice
from dpr.engine.room import Need
from dpr.formats.deletions import read_deletions, with_dead
from dpr.formats.gathered import gather_table
from dpr.formats.manifest import SegmentEntry
from dpr.formats.records import ObjectRef
from dpr.formats.segment_hashes import gather_hashes
from dpr.stages.scan import KEYS_SCHEMA, ScanResult, read_keys
from dpr.store import Store

CORPUS_ROW_BYTES, HELD_ROW_BYTES = 200, 40
"""Lower bounds of the memory that a row takes while it is compared; docs/log.md has the measurements."""
Mask = npt.NDArray[np.bool_]
"""Which of N rows."""


@dataclass(frozen=True)
class CorpusRows:
    """The usable rows of the corpus, column by column, all of length N."""

    slice: npt.NDArray[np.int32]
    position: npt.NDArray[np.int64]
    key: pa.FixedSizeBinaryArray
    id_hash: pa.FixedSizeBinaryArray


@dataclass(frozen=True)
class Rows:
    """Corpus rows that are to become rows of segments, column by column, all of length N."""

    slice: npt.NDArray[np.int32]
    position: npt.NDArray[np.int64]
    key: pa.FixedSizeBinaryArray
    content_hash: pa.FixedSizeBinaryArray
    reason: npt.NDArray[np.int8]
    """Why each is new: `dpr.formats.changes.Reason`."""

    def only(self, mask_N: Mask) -> "Rows":
        """Return the rows of a mask (N,)."""
        if mask_N.all():
            return self
        chosen = pa.array(mask_N)
        keys, content_hashes = self.key.filter(chosen), self.content_hash.filter(chosen)
        return Rows(self.slice[mask_N], self.position[mask_N], keys, content_hashes, self.reason[mask_N])

    def part(self, first: int, rows: int) -> "Rows":
        """Return some rows that lie one after another, without copying them."""
        there = slice(first, first + rows)
        keys, content_hashes = self.key.slice(first, rows), self.content_hash.slice(first, rows)
        return Rows(self.slice[there], self.position[there], keys, content_hashes, self.reason[there])


@dataclass(frozen=True)
class HeldRows:
    """All rows of all segments, column by column, all of length N."""

    segment: npt.NDArray[np.int32]
    """Number of the segment."""
    key: pa.FixedSizeBinaryArray
    content_hash: pa.FixedSizeBinaryArray
    lived: Mask
    """Whether the row was live in the base."""


@dataclass(frozen=True)
class KeptSegments:
    """Which segments stay as they are."""

    entries: list[SegmentEntry]
    dead: Mapping[int, npt.NDArray[np.uint32]]
    """Their dead rows, by segment number."""
    moved: Mask
    """Rows (N,) of segments that do not stay: those that live are copied into new ones."""
    next_segment_number: int


def diff_need(corpus_rows: int, segments: Sequence[SegmentEntry]) -> Need:
    """Estimate what comparing the corpus with segments takes: the hashes of all rows are in memory. Pure."""
    held_rows = sum(entry.rows for entry in segments)
    return Need(memory_bytes=corpus_rows * CORPUS_ROW_BYTES + held_rows * HELD_ROW_BYTES)


def read_corpus_rows(store: Store, scans: Sequence[ScanResult]) -> CorpusRows:
    """Read the keys of all scanned slices, in the order of the slices."""
    counts = [scanned.rows for scanned in scans]
    table = gather_table(
        counts, lambda number: read_keys(store, scans[number]), KEYS_SCHEMA, lambda number: scans[number].keys.name
    )
    return CorpusRows(
        np.repeat(np.arange(len(scans), dtype=np.int32), counts),
        table["position"].chunk(0).to_numpy(),
        table["key"].chunk(0),
        table["id_hash"].chunk(0),
    )


def first_with_id(corpus: CorpusRows, slices: Sequence[Slice]) -> tuple[Mask, Mask]:
    """Return which rows belong to the first passage with their id, and which begin a later one.

    All windows of a long text belong to one passage, whose rows lie together.
    """
    if slices[0].windows is None:  # all slices of a run split alike
        first = first_of_each(corpus.id_hash)
        return first, ~first
    begins = slices[0].window_numbers(corpus.position) == 0
    first = first_of_each(corpus.id_hash.filter(pa.array(begins)))[np.cumsum(begins) - 1]
    return first, begins & ~first


def read_held_rows(
    store: Store, base: Sequence[SegmentEntry], retired: Sequence[SegmentEntry], base_deletions: ObjectRef | None
) -> HeldRows:
    """Read the hashes of all rows, those of the base first."""
    entries = [*base, *retired]
    keys, content_hashes = gather_hashes(store, entries, ("key", "content_hash"))
    deletions = read_deletions(store, base_deletions)
    lived = [np.empty(0, np.bool_), *(deletions.live_mask(entry) for entry in base)]
    lived += [np.zeros(entry.rows, np.bool_) for entry in retired]
    numbers = np.array([entry.number for entry in entries], np.int32)
    return HeldRows(
        np.repeat(numbers, [entry.rows for entry in entries]),
        keys,
        content_hashes,
        np.concatenate(lived),
    )


def keep_segments(
    base: Sequence[SegmentEntry],
    retired: Sequence[SegmentEntry],
    alive: Mask,
    segment_rows: int,
    compact_below: float,
    next_segment_number: int,
) -> KeptSegments:
    """Decide which segments stay, given which of all rows (N,) live. Pure.

    A retired segment with live rows becomes part of the snapshot under a new number.
    """
    entries = [*base, *retired]
    rows = np.array([entry.rows for entry in entries], np.int64)
    masks = np.split(alive, np.cumsum(rows)[:-1]) if entries else []
    live = np.array([mask.sum() for mask in masks], np.int64)
    copied = segments_to_copy(rows, live, segment_rows, compact_below)
    kept: list[SegmentEntry] = []
    dead: dict[int, npt.NDArray[Any]] = {}
    for place, (entry, lives, is_copied) in enumerate(zip(entries, masks, copied.tolist(), strict=True)):
        if is_copied:
            continue
        number = entry.number
        if place >= len(base):
            number, next_segment_number = next_segment_number, next_segment_number + 1
        dead[number] = np.flatnonzero(~lives).astype(np.uint32)
        kept.append(with_dead(entry.model_copy(update={"number": number}), dead[number]))
    return KeptSegments(kept, dead, np.repeat(copied, rows), next_segment_number)
