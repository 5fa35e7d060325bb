"""What must hold after every night, whatever went wrong: checked from the objects alone, with pyarrow and json.

1. Rows are conserved: a snapshot holds the corpus of the run that published it, each passage once, with its vector.
2. Nothing is overwritten (found when it happens, in `objects`).
3. One publisher wins each number, and the document is that publisher's; numbers have no gaps.
4. A body is that of the undisturbed night with the same corpus and the same history.
5. Nothing is published that was not verified: all that it names is there before, the gate has measured this very index
   after it was written, its demands are met, and the publisher has looked at its lease after that.
6. The lease is taken over only from a holder that ended, or that gave no heartbeat for the time that it promised.
"""

import io
import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from dpr.fingerprint import content_hash
from dpr.formats import layout
from dpr.formats.manifest import Snapshot
from simulation.corpora import DIM
from simulation.key_vectors import vectors_of
from simulation.objects import Objects, Stored
from simulation.world import World

_CLAIM = re.compile(r"lease/(\d+)/00000001\.json")
NUDGE = 1e-2
"""Vectors of other hardware differ by less."""


def snapshots_of(objects: Objects) -> dict[int, Snapshot]:
    """Return all snapshots by number."""
    names = sorted(name for name in objects.stored if name.startswith(layout.SNAPSHOTS))
    return {layout.snapshot_number(name): Snapshot.model_validate_json(objects.stored[name].data) for name in names}


@dataclass(frozen=True)
class _Holder:
    """Who holds the lease."""

    folder: str
    process: int
    promised_seconds: float
    """After this time without a heartbeat it is taken for dead."""
    signs: tuple[float, ...]
    """When it claimed, and its heartbeats."""

    def seen(self, now: float) -> "_Holder":
        return replace(self, signs=(*self.signs, now))

    def was_silent(self, now: float) -> bool:
        """Whether it gave no sign for the promised time, until now or until it was looked at for the last time.

        Between that look and the claim lie two calls, during which a heartbeat may come too late.
        """
        looked = now - self.promised_seconds / 2
        signs = [*(sign for sign in self.signs if sign < looked), self.signs[0]]
        next_sign = min((sign for sign in self.signs if sign >= looked), default=now)
        return next_sign - max(signs) >= self.promised_seconds


class Watch:
    """Looks at each object when it is created, and at who holds the lease."""

    def __init__(self, world: World, meets_demands: Callable[[int, Snapshot], bool]) -> None:
        self._world, self._objects, self._meets_demands = world, world.objects, meets_demands
        self._number = 0
        self._holder: _Holder | None = None
        world.objects.created = self._created

    def _created(self, name: str, stored: Stored) -> None:
        if claim := _CLAIM.fullmatch(name):
            self._claimed(int(claim[1]), stored)
        elif name.startswith("lease/") and self._holder is not None and name.startswith(self._holder.folder):
            ended = name.endswith("released.json")
            self._holder = None if ended else self._holder.seen(self._world.scheduler.now)
        elif name.startswith(layout.SNAPSHOTS):
            self._published(name, stored)

    def _claimed(self, number: int, stored: Stored) -> None:
        if number < self._number:  # a name that a later holder has freed; the highest number counts
            return
        now, before, self._number = self._world.scheduler.now, self._holder, number
        if before is not None and not self._world.clock_stepped and not before.was_silent(now):
            held_by = self._world.processes[before.process]
            if held_by.lives and held_by.stopped_until < before.signs[-1]:
                self._violation(f"process {stored.by} took the lease of process {before.process}, which lives")
        promised = json.loads(stored.data)["ttl_seconds"]
        self._holder = _Holder(f"lease/{number:08d}/", stored.by, promised, (now,))

    def _published(self, name: str, stored: Stored) -> None:
        snapshot = Snapshot.model_validate_json(stored.data)
        self._world.publishers[snapshot.number], self._world.notes[snapshot.number] = stored.by, snapshot.note
        what = f"process {stored.by} published {name}"
        for problem in missing_objects(self._objects, snapshot):
            self._violation(f"{what}, {problem}")
        if snapshot.note:  # a rollback: its body was published before
            return
        if not self._meets_demands(stored.by, snapshot):
            self._violation(f"{what}, which the gate of its recipe refuses")
        if not self._objects.deleted and not _is_measured(self._objects, snapshot):
            self._violation(f"{what}, whose index the gate has not measured")
        if not self._has_looked(stored.by, snapshot):
            self._violation(f"{what} without having looked at its lease since its report")

    def _has_looked(self, process: int, snapshot: Snapshot) -> bool:
        """Whether a publisher listed the lease after it put its report, and saw itself as the holder."""
        reports = f" put_if_absent {layout.reports(snapshot.run_id)}"
        for line in reversed(self._world.trace):
            if f" {process} list lease/" in line:
                return True
            if reports in line and f" {process} put" in line:
                return False
        return False

    def _violation(self, text: str) -> None:
        self._objects.violations.append(text)


def missing_objects(objects: Objects, snapshot: Snapshot) -> Iterator[str]:
    """Yield what a snapshot names and is not there, or not as recorded."""
    for ref in snapshot.body.objects():
        if ref.name not in objects.stored:
            yield f"which names {ref.name}, and that is not there"
        elif objects.sha256(ref.name) != ref.sha256:
            yield f"which names {ref.name}, and that has other bytes"


def _is_measured(objects: Objects, snapshot: Snapshot) -> bool:
    """Whether a record of the gate, later than the index, holds the report of the body."""
    index = snapshot.body.index
    named = [*(shard.object.name for shard in index.shards), *([index.loose.name] if index.loose else [])]
    after = max(objects.stored[name].order for name in named if name in objects.stored)
    wanted = json.loads(snapshot.body.gate.model_dump_json()) | {"modes": None}
    for name, stored in objects.stored.items():
        is_record = name.startswith(layout.TRUTH) and "/measured-" in name
        if is_record and stored.order > after and json.loads(stored.data)["report"] == wanted:
            return True
    return False


def live_rows(objects: Objects, snapshot: Snapshot) -> Iterator[tuple[str, str, Any]]:
    """Yield id, text and vector of each live row, read with pyarrow alone."""
    body = snapshot.body
    dead = pq.read_table(io.BytesIO(objects.get(body.deletions.name))).to_pylist() if body.deletions else []
    gone = {(row["segment"], row["row"]) for row in dead}
    for entry in body.segments:
        rows = pq.read_table(
            io.BytesIO(objects.get(entry.object.name)), columns=["id", "text", "embedding"]
        ).to_pylist()
        yield from (
            (row["id"], row["text"], row["embedding"])
            for number, row in enumerate(rows)
            if (entry.number, number) not in gone
        )


def wrong_rows(objects: Objects, snapshot: Snapshot, texts: dict[str, str]) -> Iterator[str]:
    """Yield what a snapshot holds that is not its corpus."""
    rows = list(live_rows(objects, snapshot))
    found = {id_: text for id_, text, _ in rows}
    if len(rows) != len(found):
        yield "holds a passage twice"
    if found != texts:
        yield f"does not hold its corpus: {sorted(found.items() ^ texts.items())[:4]} differ"
    if not len(rows) == snapshot.body.passages == snapshot.body.index.rows:
        yield f"has {len(rows)} live rows and says {snapshot.body.passages} ({snapshot.body.index.rows} in the index)"
    expected_ND = vectors_of([content_hash("", text) for _, text, _ in rows], DIM)
    found_ND = np.array([vector for _, _, vector in rows], np.float32)
    if not np.allclose(found_ND, expected_ND, atol=NUDGE):
        yield "holds a vector that is not of its text"
