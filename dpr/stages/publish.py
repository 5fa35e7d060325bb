"""The publish stage: bind everything together, and make it the next snapshot if the gate is satisfied."""

import getpass
import os
import socket
from collections.abc import Sequence
from dataclasses import dataclass

from dpr.errors import GateError
from dpr.formats.gate_report import GateReport
from dpr.formats.lexical_entry import LexicalEntry
from dpr.formats.manifest import CodebookEntry, IndexEntry, SegmentEntry, Snapshot, SnapshotBody
from dpr.formats.snapshots import check_live, publish_body
from dpr.run import Run
from dpr.stages.diff import Changes
from dpr.stages.gate import GateResult
from dpr.stages.gate_drop import check_drop
from dpr.stages.gate_gain import check_gain, demands_gain
from dpr.stages.gate_limits import check_gate
from dpr.stages.live_answers import compare_with_live


@dataclass(frozen=True)
class Chosen:
    """The codebook and the indexes of a snapshot, and the gate's report on it."""

    codebook: CodebookEntry
    index: IndexEntry
    lexical: LexicalEntry | None
    gate: GateReport


def snapshot_body(run: Run, changes: Changes, segments: Sequence[SegmentEntry], chosen: Chosen) -> SnapshotBody:
    """Bind everything together."""
    return SnapshotBody(
        encoder_id=run.spec.encoder_id,
        encoder=run.spec.describe(),
        passages=sum(entry.live_rows for entry in segments),
        segments=list(segments),
        next_segment_number=changes.next_segment_number,
        deletions=changes.deletions,
        codebook=chosen.codebook,
        index=chosen.index,
        lexical=chosen.lexical,
        gate=chosen.gate,
        windows=run.recipe.corpus.splits_long,
    )


def publish(run: Run, body: SnapshotBody, measured: GateResult, force: str | None = None) -> tuple[Snapshot, bool]:
    """Make `body` the next snapshot; returns the live snapshot, and whether it is a new one.

    None is made if the live one has the same body. Raises GateError if the gate demands more, unless `force` gives a
    reason for publishing anyway, which the snapshot's note keeps. Raises ConflictError if the lease was lost,
    PublishRaceError if another publisher was first.
    """
    note = ""
    try:
        check_gate(run.recipe, measured)
        _check_against_live(run, body.gate)
    except GateError as error:
        if force is None:
            raise
        note = f"forced by {_who()}: {force} (the gate said: {error})"
        run.progress.message("gate", note)
    run.check_lease()
    if run.live is not None and run.live.body.body_id() == body.body_id():
        check_live(run.store, run.live.number)
        return run.live, False
    parent = run.live.number if run.live else None
    return publish_body(run.store, body, parent, run_id=run.run_id, inputs=run.plan.inputs, note=note), True


def _check_against_live(run: Run, report: GateReport) -> None:
    """Raise GateError if the recipe demands more compared with the live snapshot, if there is one."""
    live = run.live
    if live is None:
        return
    must_gain = demands_gain(run, live)
    if not must_gain and run.recipe.gate.max_drop is None:
        return
    changes = compare_with_live(run, report, live)
    check_drop(run, live, changes)
    if must_gain:
        check_gain(run, live, changes)


def _who() -> str:
    """Return user and host."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # the user of a container may have no name
        user = f"user {os.getuid()}"
    return f"{user}@{socket.gethostname()}"
