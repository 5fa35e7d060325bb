"""Choose the loose rows, those that no shard holds and that stay so, and read their vectors.

Few rows that no shard holds stay loose. Of many, those that are far from every centroid do, and the others become a
shard. `dpr.index.loose_index` says why, and how many.

Shapes: N rows of a segment.
"""

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import numpy.typing as npt

from dpr.formats.deletions import RowSet
from dpr.formats.loose import LooseRows, read_loose, read_loose_file
from dpr.formats.manifest import IndexEntry
from dpr.formats.objects import fetch_object
from dpr.index.live_rows import Mask
from dpr.index.loose_index import max_far, max_new
from dpr.search.vectors import SegmentVectors
from dpr.stages.build import PartResult
from dpr.stages.shard_rows import Masks, RowsNow, ShardRows, count
from dpr.stages.train import IndexContext
from dpr.store import PARALLEL_READS, Store


def plan_loose(
    store: Store, context: IndexContext, now: RowsNow, base: IndexEntry | None, parts: Mapping[int, PartResult]
) -> tuple[ShardRows, LooseRows]:
    """Return which rows are loose, and these rows with their vectors; a kind without parts has none.

    `base` is the index whose shards are kept, if any are.
    """
    if not parts:
        return _only(now.missing, RowSet({})), LooseRows.joined([], context.dim)
    known = _known_rows(store, context, now.missing, base, parts)
    loose = choose_loose(now.missing, known, context.rows, any_in_shards=now.any_in_shards)
    return loose, _gather(store, context, loose, known)


def choose_loose(missing: ShardRows, known: LooseRows, rows: int, *, any_in_shards: bool) -> ShardRows:
    """Return which of the rows that no shard holds stay loose, of an index of `rows` rows. Pure.

    `known` holds the far ones. Of equally far rows the older ones are chosen. At least one row of an index is in a
    shard.
    """
    if any_in_shards and count(missing) <= max_new(rows) + max_far(rows):
        return missing
    is_far = (known.distances_N > 0) & _are_in(missing, known)
    far = known.only(is_far).farthest(max_far(rows))
    if not any_in_shards and len(far) == count(missing):
        return _only(missing, RowSet({}))
    numbers = np.unique(far.segments_N).tolist()
    return _only(missing, RowSet({number: far.rows_N[far.segments_N == number] for number in numbers}))


def _only(missing: ShardRows, rows: RowSet) -> ShardRows:
    """Return the masks in which only these rows are chosen."""

    def mask(number: int) -> Mask:
        chosen = np.zeros_like(missing[number])
        chosen[rows.rows(number)] = True
        return chosen

    return Masks(missing, mask)


def _known_rows(
    store: Store, context: IndexContext, missing: ShardRows, base: IndexEntry | None, parts: Mapping[int, PartResult]
) -> LooseRows:
    """Return the rows whose vectors need not be looked for: the base's loose ones, and the far ones of new segments.

    A segment is new if the base has no loose row of it; what lies in its shards is not loose again. Each has kept up to
    1,000 far rows; of all of them, only as many are held as may be loose. Many files are fetched at once, and they are
    read one at a time.
    """
    kept = read_loose(store, base.loose if base else None, context.dim)
    new = [number for number, mask in missing.items() if mask.any() and number not in kept.segments_N]
    files = {number: ref for number in new if (ref := parts[number].far) is not None}
    far = LooseRows.joined([], context.dim)
    with ThreadPoolExecutor(PARALLEL_READS) as pool:
        fetched = pool.map(lambda ref: fetch_object(store, ref), files.values())
        for number, file in zip(files, fetched, strict=True):
            found = read_loose_file(file).in_segment(number)
            found = found.only(_are_in(missing, found))
            far = LooseRows.joined([far, found], context.dim).farthest(max_far(context.rows))
    return LooseRows.joined([kept, far], context.dim)


def _gather(store: Store, context: IndexContext, loose: ShardRows, known: LooseRows) -> LooseRows:
    """Return the loose rows with their vectors, those that are not known read from their segments."""
    there = known.only(_are_in(loose, known))
    found = [there]
    for entry in context.segments:
        rows = np.flatnonzero(loose[entry.number])
        rows = np.setdiff1d(rows, there.rows_N[there.segments_N == entry.number])
        if len(rows):
            vectors_ND = SegmentVectors.open(store, entry.object).rows(rows)
            found.append(LooseRows.of_segment(entry.number, rows, vectors_ND))
    return LooseRows.joined(found, context.dim)


def _are_in(rows: ShardRows, some: LooseRows) -> npt.NDArray[np.bool_]:
    """Return which of some rows a set holds."""
    held_N = np.zeros(len(some), np.bool_)
    for number in np.unique(some.segments_N).tolist():
        if number in rows:
            own_N = some.segments_N == number
            held_N[own_N] = rows[number][some.rows_N[own_N]]
    return held_N
