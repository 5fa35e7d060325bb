"""Planning segments: which rows become which segment, to be embedded or copied. Pure.

Shapes: N rows.
"""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Literal

import numpy as np
import pyarrow as pa

from dpr.corpus.hashes import bytes_of, first_of_each, is_in, places
from dpr.fingerprint import fingerprint
from dpr.formats import MISSING
from dpr.formats.changes import Reason, changes_table
from dpr.formats.records import Document
from dpr.stages.held_rows import HeldRows, Mask, Rows

SPREAD = 16
"""A small night is spread over up to this many segments to embed: with fewer, most workers would wait while a few work.
A large one begins with this many segments of a third of the rows, and as many of two thirds: a GPU waits less for the
first tokens."""
MIN_SPREAD_ROWS = 1_000
"""Least rows of each of them, which are also at least a third of a full segment: segments with less than a quarter of
its rows are joined (`dpr.corpus.compaction`)."""


@dataclass(frozen=True)
class SegmentCut:
    """How rows are cut into segments."""

    encoder_id: str
    segment_rows: int
    """Rows of a segment, at most."""


class PlannedSegment(Document):
    """One segment to make: row group `group` of the changes file."""

    number: int
    segment_id: str
    kind: Literal["embed", "copy"]
    group: int
    rows: int
    slices: list[int]
    """Numbers of the slices that hold its texts."""


def plan_segments(
    cut: SegmentCut, new: Rows, held: HeldRows, moved: Mask, next_number: int
) -> tuple[list[tuple[PlannedSegment, pa.Table]], int]:
    """Return the segments to make, with their rows of the changes file, and the segment number after them. Pure.

    A text that occurs several times is embedded once; the others borrow its vector, also within this run.
    """
    unseen = ~is_in(new.content_hash, held.content_hash)
    is_first = np.zeros(len(unseen), np.bool_)
    is_first[unseen] = first_of_each(new.content_hash.filter(pa.array(unseen)))
    embed, borrow = new.only(is_first), new.only(~is_first)
    embed_sizes = _embed_sizes(len(embed.key), cut.segment_rows)
    embed_numbers = np.repeat(next_number + np.arange(len(embed_sizes)), embed_sizes)
    holders = np.concatenate([held.segment, embed_numbers.astype(np.int32)])
    borrow_sources = holders[places(borrow.content_hash, pa.concat_arrays([held.content_hash, embed.content_hash]))]
    no_slice = np.full(int(moved.sum()), MISSING)
    copies = pa.concat_tables(
        [
            changes_table(
                borrow.slice, borrow.position, borrow.key, borrow.content_hash, borrow_sources, borrow.reason
            ),
            changes_table(
                no_slice,
                no_slice,
                held.key.filter(pa.array(moved)),
                held.content_hash.filter(pa.array(moved)),
                held.segment[moved],
                np.full(len(no_slice), Reason.MOVED),
            ),
        ]
    )
    tables = [_embed_table(embed.part(*piece)) for piece in _one_after_another(embed_sizes)]
    copy_sizes = _even_sizes(copies.num_rows, -(-copies.num_rows // cut.segment_rows))
    tables += [copies.slice(*piece) for piece in _one_after_another(copy_sizes)]
    planned = []
    for group, table in enumerate(tables):
        kind: Literal["embed", "copy"] = "embed" if group < len(embed_sizes) else "copy"
        planned.append((_planned(cut.encoder_id, next_number + group, group, kind, table), table))
    return planned, next_number + len(tables)


def _embed_table(rows: Rows) -> pa.Table:
    no_source = np.full(len(rows.key), MISSING)
    return changes_table(rows.slice, rows.position, rows.key, rows.content_hash, no_source, rows.reason)


def _planned(
    encoder_id: str, number: int, group: int, kind: Literal["embed", "copy"], table: pa.Table
) -> PlannedSegment:
    digest = hashlib.blake2b(digest_size=16)
    for chunk in table["key"].chunks:
        digest.update(bytes_of(chunk))
    numbers = np.unique(table["slice"].to_numpy())
    return PlannedSegment(
        number=number,
        segment_id=fingerprint({"encoder": encoder_id, "kind": kind, "keys": digest.hexdigest()}),
        kind=kind,
        group=group,
        rows=table.num_rows,
        slices=numbers[numbers != MISSING].tolist(),
    )


def _embed_sizes(rows: int, segment_rows: int) -> list[int]:
    """Return the rows of each segment to embed; see SPREAD."""
    small = max(MIN_SPREAD_ROWS, segment_rows // 3)
    first = [small] * SPREAD + [2 * small] * SPREAD
    rest = rows - sum(first)
    if 2 * small > segment_rows or rest < SPREAD * segment_rows:
        return _even_sizes(rows, max(min(SPREAD, rows // small), -(-rows // segment_rows)))
    return first + _even_sizes(rest, -(-rest // segment_rows))


def _even_sizes(rows: int, pieces: int) -> list[int]:
    """Return the sizes of this many pieces, as equal as can be, the larger ones first."""
    return [rows // pieces + (piece < rows % pieces) for piece in range(pieces)] if rows else []


def _one_after_another(sizes: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Yield the first row and the rows of pieces of these sizes."""
    return zip(accumulate(sizes, initial=0), sizes, strict=False)
