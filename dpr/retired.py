"""What a run takes over from older snapshots: segments that the base does not hold, and words of segments."""

from collections.abc import Sequence

from dpr.formats import layout
from dpr.formats.manifest import SegmentEntry, Snapshot
from dpr.formats.records import ObjectRef
from dpr.store import Store

RETIRED_FROM = 2**30
"""Segments that are not part of the base are numbered from here on, until a snapshot takes one in."""


def retired_segments(store: Store, snapshots: Sequence[Snapshot]) -> list[SegmentEntry]:
    """Return each segment of the older snapshots that the newest does not hold, once, if its object is still there."""
    if len(snapshots) < 2:
        return []
    held = {entry.object.name for entry in snapshots[-1].body.segments}
    older = {e.object.name: e for s in reversed(snapshots[:-1]) for e in s.body.segments if e.object.name not in held}
    if not older:
        return []
    there = {info.name for info in store.list(f"{layout.SEGMENTS}{snapshots[-1].body.encoder_id}/")}
    return as_retired([entry for name, entry in sorted(older.items()) if name in there])


def words_of(snapshots: Sequence[Snapshot], segments: Sequence[SegmentEntry]) -> list[ObjectRef]:
    """Return the lexical parts of some segments that the snapshots name, also those by several rules, each once."""
    wanted = {entry.object.name for entry in segments}
    found = {}
    for body in (snapshot.body for snapshot in snapshots):
        names = {entry.number: entry.object.name for entry in body.segments}
        for part in body.lexical.parts if body.lexical else ():
            if names[part.segment] in wanted:
                found[part.object.name] = part.object
    return list(found.values())


def as_retired(entries: Sequence[SegmentEntry]) -> list[SegmentEntry]:
    """Return segments as the diff takes retired ones: numbered from RETIRED_FROM on, all rows dead."""
    return [
        entry.model_copy(update={"number": RETIRED_FROM + place, "dead_rows": entry.rows, "dead_digest": ""})
        for place, entry in enumerate(entries)
    ]
