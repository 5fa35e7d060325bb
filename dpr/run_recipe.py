"""A whole run of a recipe, with the store's lease held, until a snapshot is published or there is nothing to do."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

from dpr.engine.executor import Executor
from dpr.engine.progress import Progress
from dpr.engine.run_state import Ending
from dpr.errors import PublishRaceError
from dpr.formats.manifest import Snapshot
from dpr.formats.snapshots import latest_snapshot
from dpr.nightly import make_body, make_index, make_segments
from dpr.operations.after_publish import check_published
from dpr.operations.make_report import Parts, end_attempt, report_of_dead, reported_if_it_fails
from dpr.operations.remembered_estimate import remembered_estimate
from dpr.operations.run_report import RunReport
from dpr.plurals import counted
from dpr.recipe import Recipe
from dpr.run import Plan, Run
from dpr.stages.publish import publish
from dpr.store import open_store
from dpr.store.lease import Lease
from dpr.store.proof import prove_put_if_absent
from dpr.store.requests import take_outside

PUBLISH_ATTEMPTS = 3


@dataclass(frozen=True)
class Outcome:
    """How a run ended."""

    snapshot: Snapshot
    published: bool
    """False: the live snapshot holds all this already."""
    report: RunReport | None
    """None: there was nothing to do."""


@dataclass(frozen=True)
class Allowed:
    """Exceptions that the user allows to this run; each would stop it otherwise."""

    shrink: bool = False
    """A corpus that lost more than limits.max_shrink."""
    force: str | None = None
    """A snapshot that the gate refuses; the reason why."""


def run_recipe(recipe: Recipe, executor: Executor, progress: Progress, allowed: Allowed = Allowed()) -> Outcome:
    """Bring the collection of a recipe up to date; `finished_run` checks whether there is anything to do."""
    plan = Plan.of(recipe)
    return finished_run(plan) or run_plan(plan, executor, progress, allowed)


def finished_run(plan: Plan) -> Outcome | None:
    """Return the outcome of a run that has nothing to do, or None.

    Costs one listing and one small read. With `corpus.rescan: always` the corpus has to be read first.
    """
    if plan.recipe.corpus.rescan == "always":
        return None
    live = latest_snapshot(open_store(plan.recipe.store))
    if live is None or live.inputs != plan.inputs:
        return None
    return Outcome(live, False, None)


def run_plan(
    plan: Plan,
    executor: Executor,
    progress: Progress,
    allowed: Allowed = Allowed(),
    lease_seconds: float | None = None,
) -> Outcome:
    """Carry a plan out, holding the store's lease; a run that is silent for `lease_seconds` loses it.

    `lease_seconds` is by default what the recipe says. If another publisher is first (a rollback, say), the recipe is
    planned again on the new parent; finished units are used.
    """
    try:
        outcome = _hold_lease_and_run(
            plan, executor, progress, allowed, lease_seconds or plan.recipe.limits.lease_seconds
        )
    finally:
        others = take_outside()
    if outcome.report is None:
        return outcome
    return replace(outcome, report=outcome.report.model_copy(update={"other_requests": others}))


def _hold_lease_and_run(
    plan: Plan, executor: Executor, progress: Progress, allowed: Allowed, lease_seconds: float
) -> Outcome:
    with leased(plan, f"run of {plan.recipe.store}", lease_seconds) as lease:
        for _ in range(PUBLISH_ATTEMPTS - 1):
            try:
                return _attempt(Run(plan, executor, progress, lease), allowed)
            except PublishRaceError:
                plan = Plan.of(plan.recipe)
        return _attempt(Run(plan, executor, progress, lease), allowed)


@contextmanager
def leased(plan: Plan, owner: str, lease_seconds: float) -> Iterator[Lease]:
    """Hold the lease of a plan's store within the block, as `owner`.

    Before, the store has to prove that it refuses to replace an object, and the report of a run that held the lease and
    died is stored. Raises ConflictError as `Lease.acquire` does, StoreError as `prove_put_if_absent` does.
    """
    store = open_store(plan.recipe.store)
    with Lease.acquire(store, owner, lease_seconds) as lease:
        prove_put_if_absent(store)
        report_of_dead(store, lease.predecessor)
        yield lease


def _attempt(run: Run, allowed: Allowed) -> Outcome:
    if (estimate := remembered_estimate(run.run_id)) is not None:
        run.expected_seconds = estimate.seconds
    try:
        with reported_if_it_fails(run, parts := Parts()):
            snapshot, published = _carry_out(run, allowed, parts)
            return Outcome(snapshot, published, end_attempt(run, parts, ending(snapshot, published=published)))
    finally:
        run.executor.release()


def ending(snapshot: Snapshot, *, published: bool) -> Ending:
    """Return how a run ends that left this snapshot live."""
    number, passages = snapshot.number, snapshot.body.passages
    if not published:
        sentence = f"snapshot {number} is up to date: nothing changed"
        return Ending(kind="up to date", exit_code=0, sentence=sentence, snapshot=number)
    sentence = f"published snapshot {number} with {counted(passages, 'passage')}"
    return Ending(kind="published", exit_code=0, sentence=sentence, snapshot=number)


def _carry_out(run: Run, allowed: Allowed, parts: Parts) -> tuple[Snapshot, bool]:
    made = parts.segments = make_segments(run, allow_shrink=allowed.shrink)
    indexed = parts.indexed = make_index(run, made)
    body, measured = make_body(run, made, indexed)
    parts.body = body
    snapshot, published = publish(run, body, measured, allowed.force)
    if published and run.recipe.gate.after_publish is not None:
        check_published(run.store, snapshot, run.recipe.gate.after_publish)
    return snapshot, published
