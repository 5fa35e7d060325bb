"""Comparing two snapshots: which passages were added, removed and changed."""

from collections.abc import Set
from dataclasses import dataclass

import numpy as np

from dpr.formats.deletions import read_deletions
from dpr.formats.manifest import SegmentEntry, SnapshotBody
from dpr.formats.objects import open_parts
from dpr.formats.segment import iter_groups
from dpr.formats.snapshots import open_snapshot
from dpr.store import Store


@dataclass(frozen=True)
class Difference:
    """Passage ids that differ between two snapshots."""

    added: list[str]
    removed: list[str]
    changed: list[str]


def compare(store: Store, old: int, new: int) -> Difference:
    """Return the passages that differ between two snapshots; reads ids and keys of the segments that differ."""
    before, reading_before = open_snapshot(store, old)
    with reading_before:
        after, reading_after = open_snapshot(store, new)
        with reading_after:
            return _difference(store, before.body, after.body)


def _difference(store: Store, before: SnapshotBody, after: SnapshotBody) -> Difference:
    same = {_state(entry) for entry in before.segments} & {_state(entry) for entry in after.segments}
    if before.windows or after.windows:
        same = set()  # windows of a passage may lie in several segments, and all of them are compared
    keys_before, keys_after = _keys(store, before, same), _keys(store, after, same)
    added = [i for i in keys_after if i not in keys_before]
    removed = [i for i in keys_before if i not in keys_after]
    changed = [i for i, key in keys_after.items() if i in keys_before and keys_before[i] != key]
    return Difference(sorted(added), sorted(removed), sorted(changed))


def _keys(store: Store, body: SnapshotBody, without: Set[tuple[str, str]]) -> dict[str, frozenset[bytes]]:
    """Return the keys of each passage id: one, or one for each window of a long text."""
    keys: dict[str, frozenset[bytes]] = {}
    deletions = read_deletions(store, body.deletions)
    for entry in body.segments:
        if _state(entry) in without:
            continue
        first, live = 0, deletions.live_rows(entry)
        for table in iter_groups(open_parts(store, entry.object), ["id", "key"]):
            rows = live[np.searchsorted(live, first) : np.searchsorted(live, first + table.num_rows)] - first
            chosen = table.take(rows)
            for id_, key in zip(chosen["id"].to_pylist(), chosen["key"].to_pylist(), strict=True):
                keys[id_] = keys.get(id_, frozenset()) | {key}
            first += table.num_rows
    return keys


def _state(entry: SegmentEntry) -> tuple[str, str]:
    return entry.object.sha256, entry.dead_digest
