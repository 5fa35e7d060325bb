"""A whole run of a recipe, from corpus to published snapshot."""

from collections.abc import Sequence
from dataclasses import dataclass

from dpr import layout
from dpr.corpus.diff import Changes
from dpr.errors import PublishRaceError
from dpr.manifest import CodebookEntry, SegmentEntry, Snapshot, SnapshotBody
from dpr.pipeline.estimate import measured
from dpr.pipeline.execute import Executor, Progress
from dpr.pipeline.gate import check_gate
from dpr.pipeline.plan import Plan
from dpr.pipeline.report import Costs, Report, remembered_estimate
from dpr.pipeline.retrain import CodebookChoice
from dpr.pipeline.run import Gated, Run
from dpr.recipe import Recipe
from dpr.snapshot import check_live, latest_snapshot, publish
from dpr.store import open_store
from dpr.store.lease import Lease
from dpr.store.proof import prove_put_if_absent

PUBLISH_ATTEMPTS = 3


@dataclass(frozen=True)
class Outcome:
    """How a run ended."""

    snapshot: Snapshot
    published: bool
    """False: the live snapshot holds all this already."""
    report: Report | None
    """None: there was nothing to do."""


def run_recipe(recipe: Recipe, executor: Executor, progress: Progress, *, allow_shrink: bool = False) -> Outcome:
    """Bring the collection of a recipe up to date; nothing at all is done if the live snapshot has the same inputs."""
    plan = Plan.of(recipe)
    return finished_run(plan) or run_plan(plan, executor, progress, allow_shrink=allow_shrink)


def run_plan(
    plan: Plan,
    executor: Executor,
    progress: Progress,
    *,
    allow_shrink: bool = False,
    lease_ttl_seconds: float = 60.0,
) -> Outcome:
    """Carry a plan out, with the store's lease in hand; a run that is silent for `lease_ttl_seconds` loses it.

    If somebody else publishes first (a rollback, say), the recipe is planned again on the new parent; what has been
    made already is used.
    """
    store = open_store(plan.recipe.store)
    with Lease.acquire(store, f"run of {plan.recipe.store}", lease_ttl_seconds) as lease:
        prove_put_if_absent(store)
        for _ in range(PUBLISH_ATTEMPTS - 1):
            try:
                return _all_stages(Run(plan, executor, progress), lease, allow_shrink=allow_shrink)
            except PublishRaceError:
                plan = Plan.of(plan.recipe)
        return _all_stages(Run(plan, executor, progress), lease, allow_shrink=allow_shrink)


def finished_run(plan: Plan) -> Outcome | None:
    """The outcome of a run that has nothing to do, or None. Costs one small read."""
    live = latest_snapshot(open_store(plan.recipe.store))
    if live is None or live.inputs != plan.inputs:
        return None
    return Outcome(live, False, None)


def _all_stages(run: Run, lease: Lease, *, allow_shrink: bool) -> Outcome:
    """The whole road; `lease` must still be held when it ends."""
    changes, segments = run.scan_and_embed(allow_shrink=allow_shrink)
    codebook, choice = run.train(segments)
    run.build(segments, codebook, choice)
    index = run.merge(segments, codebook, choice)
    body = _body(run, changes, segments, codebook, run.gate(segments, index))
    report = _report(run, choice, body)
    lease.check()
    return _publish(run, body, report)


def _body(
    run: Run, changes: Changes, segments: Sequence[SegmentEntry], codebook: CodebookEntry, gated: Gated
) -> SnapshotBody:
    """Everything bound together."""
    return SnapshotBody(
        encoder_id=run.spec.encoder_id,
        encoder=run.spec.describe(),
        passages=sum(entry.live_rows for entry in segments),
        segments=list(segments),
        next_segment_number=changes.next_segment_number,
        codebook=codebook,
        index=gated[0],
        gate=gated[1],
    )


def _report(run: Run, choice: CodebookChoice, body: SnapshotBody) -> Report:
    """Write the run's report beside what else it made; the last attempt's stays."""
    cluster, price = run.executor.cluster(), run.recipe.resources.price_per_gpu_hour
    outcome = measured(run.notes.stages, run.notes.encoding, cluster, price)
    costs = Costs(estimate=remembered_estimate(run.run_id), outcome=outcome)
    report = run.notes.report(run.base.number if run.base else None, choice, body, costs)
    run.store.put(layout.report(run.run_id), report.to_bytes())
    return report


def _publish(run: Run, body: SnapshotBody, report: Report) -> Outcome:
    """Make it the next snapshot, unless the live one is the same or it does not reach what the recipe demands."""
    check_gate(run.recipe.gate, body.gate)
    if run.live is not None and run.live.body.body_id() == body.body_id():
        check_live(run.store, run.live.number)
        return Outcome(run.live, False, report)
    parent = run.live.number if run.live else None
    snapshot = publish(run.store, body, parent, run_id=run.run_id, inputs=run.plan.inputs)
    return Outcome(snapshot, True, report)
