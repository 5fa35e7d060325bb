"""Make the report of an attempt to carry out a run, however it ended, and store it; read the reports of a run."""

import contextlib
import signal
from collections.abc import Iterator
from dataclasses import dataclass

from pydantic import ValidationError

from dpr.engine.run_state import Ending, RunState
from dpr.errors import DprError, GateError, MissingObjectError, StoreError
from dpr.formats import layout
from dpr.formats.manifest import SnapshotBody
from dpr.operations.bill import all_requests, bill
from dpr.operations.estimate import measured_cost
from dpr.operations.remembered_estimate import remembered_estimate
from dpr.operations.run_page import render_run
from dpr.operations.run_report import (
    MAX_LEFT_OUT,
    EarlierAttempt,
    Found,
    IndexReport,
    RunReport,
    ShardReport,
)
from dpr.run import Run
from dpr.stages.embed_meter import Encoding
from dpr.stages.made import Indexed, Segments
from dpr.stages.scan import plan_scan, trusted_files
from dpr.store import Store
from dpr.store.requests import move_outside

ENDED = ("published", "up to date")
"""How the last attempt of a run ends."""


@dataclass
class Parts:
    """The results of an attempt so far."""

    segments: Segments | None = None
    indexed: Indexed | None = None
    body: SnapshotBody | None = None


@contextlib.contextmanager
def reported_if_it_fails(run: Run, parts: Parts) -> Iterator[None]:
    """Leave a report of how far a run has come if an error or a signal ends the block.

    If the store itself fails, the next holder of the lease stores what this one's release, or its last heartbeat, says.
    """
    try:
        yield
    except BaseException as error:
        run.ending = ending_of(error)
        if not isinstance(error, StoreError):
            end_attempt(run, parts, run.ending)
        raise


def ending_of(error: BaseException) -> Ending:
    """Return the ending of an attempt that an error or a signal ends, with the exit code of the command."""
    if isinstance(error, DprError):
        is_gate = isinstance(error, GateError)
        return Ending(kind="refused" if is_gate else "failed", exit_code=error.exit_code, sentence=str(error))
    if isinstance(error, KeyboardInterrupt):
        by = signal.Signals(error.args[0]) if error.args else signal.SIGINT
        return Ending(kind="interrupted", exit_code=128 + by, sentence=f"stopped by {by.name}")
    return Ending(kind="failed", exit_code=1, sentence=f"a bug: {type(error).__name__}: {error}; please report it")


def end_attempt(run: Run, parts: Parts, ending: Ending) -> RunReport:
    """Make the report of an attempt that ends, and store it."""
    run.ending = ending
    report = make_report(run, parts, ending)
    put_report(run.store, report)
    run.is_reported = True
    return report


def make_report(run: Run, parts: Parts, ending: Ending) -> RunReport:
    """Put together what an attempt found, did and measured, as far as it got."""
    made, indexed, body = parts.segments, parts.indexed, parts.body
    encoding = Encoding.of([segment.result for segment in made.embedded]) if made else Encoding()
    cost = measured_cost(run.stage_reports, encoding, run.gpus, run.prices.gpu_hour)
    others = move_outside()
    return RunReport(
        run=run.run_id,
        attempt=run.clock.attempt,
        ending=ending,
        base=run.base.number if run.base else None,
        seconds=run.clock.seconds(),
        found=_found(made) if made else Found(),
        trusted_files=trusted_files(plan_scan(run), run.plan.scanned),
        left_out=run.plan.corpus.left_out[:MAX_LEFT_OUT],
        notes=run.plan.corpus.notes(),
        unknown_answers=len(made.changes.unknown_answers) if made else 0,
        stages=run.stage_reports,
        encoding=encoding,
        long=run.recipe.corpus.long,
        index=_index_report(indexed, body) if indexed and body else None,
        gate=body.gate if body else None,
        cost=cost,
        estimate=remembered_estimate(run.run_id),
        other_requests=others,
        bill=bill(cost.gpu_hours, all_requests(run.stage_reports, others), run.prices),
        earlier=earlier_attempts(run.store, run.run_id),
    )


def _found(made: Segments) -> Found:
    changes = made.changes
    return Found(
        rows=sum(scanned.rows + scanned.unusable_rows for scanned in made.scans),
        passages=changes.rows,
        new=changes.new,
        embedded=changes.embed_rows,
        borrowed=changes.borrowed,
        why_embedded=changes.why_embedded,
        why_copied=changes.why_copied,
        dead=changes.dead,
        restored=changes.restored,
        duplicates=changes.duplicates,
        split_passages=sum(scanned.split_passages for scanned in made.scans),
        windows=sum(scanned.windows for scanned in made.scans),
        quarantined=dict(made.settled.reasons),
    )


def _index_report(indexed: Indexed, body: SnapshotBody) -> IndexReport:
    choice = indexed.choice
    return IndexReport(
        factory=choice.plan.factory,
        trained=choice.reuse is None,
        reason=choice.reason,
        drift=choice.drift,
        reasons=choice.plan.reasons,
        index_bytes=body.index.size_bytes,
        shards=_shard_reports(indexed, body),
    )


def _shard_reports(indexed: Indexed, body: SnapshotBody) -> list[ShardReport]:
    written = {result.shard.name: result.verification for result in indexed.shards}
    return [
        ShardReport(
            segments=shard.segments,
            rows=shard.rows,
            live_rows=shard.live_rows,
            size_bytes=shard.object.size_bytes,
            verification=written.get(shard.object.name),
        )
        for shard in body.index.shards
    ]


def report_of_dead(store: Store, words: bytes | None) -> None:
    """Store the report of an attempt that could not store it: it died, or its store failed.

    `words` are those with which it left the lease, or its last heartbeat. Nothing is stored if they are of somebody
    else, of another version, or of an attempt that has its report.
    """
    try:
        state = RunState.model_validate_json(words or b"")
    except ValidationError:
        return
    if not state.is_reported:
        put_report(store, _report_of(state))


def _report_of(state: RunState) -> RunReport:
    """Return the report of an attempt of which only its last message is known."""
    died = Ending(kind="died", exit_code=None, sentence="it did not report its end: it was killed or cut off")
    encoding = Encoding()
    cost = measured_cost(state.stages, encoding, state.gpus, state.prices.gpu_hour)
    return RunReport(
        run=state.run,
        attempt=state.attempt,
        ending=state.ending or died,
        base=state.base,
        seconds=state.seconds,
        stages=state.stages,
        cost=cost,
        bill=bill(cost.gpu_hours, all_requests(state.stages, {}), state.prices),
    )


def put_report(store: Store, report: RunReport) -> None:
    """Store the report of an attempt, and as a page; if the attempt has ended its run, as that of the run, too.

    The first report of an attempt counts, and so does the first that says how the run ended.
    """
    page = render_run(report).encode()
    store.put_if_absent(layout.report(report.run, report.attempt), report.to_bytes())
    if report.ending.kind in ENDED:
        store.put_if_absent(layout.run_report(report.run), report.to_bytes())
        store.put_if_absent(layout.run_page(report.run), page)
    else:
        store.put_if_absent(layout.report_page(report.run, report.attempt), page)


def latest_report(store: Store, run_id: str) -> RunReport | None:
    """Return the report of the last attempt of a run; None if there is none that this version can read."""
    names = _report_names(store, run_id)
    return read_report(store, names[-1]) if names else None


def earlier_attempts(store: Store, run_id: str) -> list[EarlierAttempt]:
    """Return the attempts of a run so far, oldest first."""
    reports = (read_report(store, name) for name in _report_names(store, run_id))
    return [
        EarlierAttempt(
            attempt=report.attempt,
            seconds=report.seconds,
            last_stage=report.last_stage,
            ending=report.ending,
            bill=report.bill,
        )
        for report in reports
        if report is not None
    ]


def read_report(store: Store, name: str) -> RunReport | None:
    """Return a stored report; None if there is none, or if it is of another version."""
    try:
        return RunReport.model_validate_json(store.get(name))
    except (MissingObjectError, ValidationError):
        return None


def _report_names(store: Store, run_id: str) -> list[str]:
    return [info.name for info in store.list(layout.reports(run_id)) if info.name.endswith(".json")]
