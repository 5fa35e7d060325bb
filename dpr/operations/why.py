"""Why a passage was embedded: which run made its row, and the reason in the changes file of that run."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow.compute as pc

from dpr.errors import IntegrityError, RecipeError
from dpr.formats import layout
from dpr.formats.changes import Reason, read_unit
from dpr.formats.deletions import read_deletions
from dpr.formats.manifest import SegmentEntry, Snapshot
from dpr.formats.objects import open_parts
from dpr.formats.records import read_record
from dpr.formats.segment import iter_groups
from dpr.formats.snapshots import History, open_snapshot, read_history
from dpr.stages.diff import Changes
from dpr.store import Store


@dataclass(frozen=True)
class Row:
    """One row of a passage; a passage that was split into windows has several."""

    segment: int
    row: int
    since: int
    """The oldest snapshot that is kept and holds its segment."""
    run: str
    """The run that made this snapshot."""
    published_at: str
    is_copied: bool | None
    """Whether its vector was copied; None: the run's changes were collected as garbage."""
    reason: Reason | None
    """None: not known."""

    def describe(self) -> str:
        """Return the answer in a sentence."""
        where = f"row {self.row} of segment {self.segment}, since snapshot {self.since} ({self.published_at})"
        if self.is_copied is None:
            return f"{where}: its run {self.run} was collected as garbage, so the reason is not known"
        made = "its vector was copied, since its text has one already" if self.is_copied else "embedded"
        if self.reason is None:
            return f"{where}: {made}; run {self.run} was of a version that kept no reasons"
        return f"{where}: {made}; {self.reason.label}: {self.reason.sentence}"


def why(store: Store, passage_id: str, number: int | None = None) -> list[Row]:
    """Return why each row of a passage of snapshot `number` (default: the live one) was made.

    The ids of all segments are read. Raises RecipeError if the snapshot has no such passage, and
    IntegrityError if only a damaged snapshot can tell.
    """
    snapshot, marker = open_snapshot(store, number)
    with marker:
        history = read_history(store, snapshot.number)
        rows = [_explain(store, history, entry, row, key) for entry, row, key in _rows(store, snapshot, passage_id)]
    if not rows:
        raise RecipeError(
            f"snapshot {snapshot.number} of {store.url} has no passage with the id {passage_id!r}; `dpr diff` lists "
            "those that were added and removed, and the quarantine file of its run those that cannot be used"
        )
    return rows


def _rows(store: Store, snapshot: Snapshot, passage_id: str) -> Iterator[tuple[SegmentEntry, int, bytes]]:
    """Yield segment, row and key of the live rows with an id."""
    deletions = read_deletions(store, snapshot.body.deletions)
    for entry in snapshot.body.segments:
        first, lives = 0, deletions.live_mask(entry)
        for table in iter_groups(open_parts(store, entry.object), ["id", "key"]):
            for row in np.flatnonzero(pc.equal(table["id"], passage_id).to_numpy()).tolist():
                if lives[first + row]:
                    yield entry, first + row, table["key"][row].as_py()
            first += table.num_rows


def _explain(store: Store, history: History, entry: SegmentEntry, row: int, key: bytes) -> Row:
    """Find the run that made a row, among those of snapshots that are kept.

    Raises IntegrityError if that may be the run of a damaged snapshot.
    """
    since = next(s for s in history.snapshots if any(e.object.sha256 == entry.object.sha256 for e in s.body.segments))
    changes = read_record(store, layout.record(layout.changes(since.run_id)), Changes)
    planned = [p for p in (changes.planned if changes else ()) if p.segment_id == entry.segment_id]
    for damaged in history.damaged:
        if damaged.number < since.number and not planned:
            raise IntegrityError(damaged.problem)
    is_copied, reason = None, None
    if changes is not None and changes.changes is not None and planned:
        table = read_unit(open_parts(store, changes.changes), planned[0].group)
        is_copied = planned[0].kind == "copy"
        if "reason" in table.column_names:
            (place,) = np.flatnonzero(pc.equal(table["key"], key).to_numpy())
            reason = Reason(table["reason"][int(place)].as_py())
    return Row(entry.number, row, since.number, since.run_id, since.published_at, is_copied, reason)
