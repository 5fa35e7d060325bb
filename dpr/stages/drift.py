"""The drift stage: decide whether the base's codebook is kept, by the recipe, the growth of the corpus, and its drift.

Drift is measured in a unit of its own: a codebook grows with the corpus, and the driver has no memory for it.

Shapes: N rows, D dimensions.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

from dpr.engine.stage import Stage, Step, Work, recorded
from dpr.errors import IndexBuildError
from dpr.formats import layout
from dpr.formats.manifest import CodebookEntry, SegmentEntry
from dpr.formats.objects import fetch_object
from dpr.formats.records import Document, ObjectRef, Result
from dpr.index.choose import IndexPlan, choose, factory_of, fits, keep
from dpr.index.faiss_file import read_faiss
from dpr.index.hardware import Hardware, faiss_threads
from dpr.index.kinds import list_count
from dpr.index.loose_index import max_new
from dpr.index.training import describe_training, imbalance_growth, list_imbalance, quantisation_error
from dpr.plurals import counted
from dpr.recipe_index import IndexConfig
from dpr.run import Run
from dpr.stages.load_ahead import warm_coders
from dpr.stages.train import IndexContext, sample_vectors, train_codebook
from dpr.store import open_store

DRIFT_ROWS = 5_000
"""Rows whose drift is measured, at most: enough to know the error to a fifth of a percent, and coded in a second."""
RETRAIN_GROWTH = 1.5
"""`auto` applies the rule of N again once the corpus has grown or shrunk by this factor since training."""


class Drift(Document):
    """How the live rows that came since training differ from the vectors held out in training."""

    rows: int
    quantisation_error: float
    """Their error relative to that of the vectors held out in training, minus 1."""
    list_imbalance: float | None
    """Bound of the relative growth of the index's imbalance through them; None for kinds without inverted lists."""

    @property
    def largest(self) -> float:
        return max(self.quantisation_error, self.list_imbalance or 0.0)

    @property
    def description(self) -> str:
        """Both figures."""
        lists = "" if self.list_imbalance is None else f" and {self.list_imbalance:.3f} of list imbalance"
        since = f"of {self.rows:,} rows since training"
        return f"drift {self.quantisation_error:.3f} of quantisation error{lists} {since}"


@dataclass(frozen=True)
class CodebookChoice:
    """Whether the base's codebook is kept, and why."""

    reuse: CodebookEntry | None
    plan: IndexPlan
    drift: Drift | None
    """None: no codebook yet, or so few rows since it was trained that all may be loose (`dpr.index.loose_index`)."""
    reason: str

    @property
    def description(self) -> str:
        """The choice and all its reasons, in a line."""
        codebook = "its codebook is kept" if self.reuse else "a new codebook is trained"
        return f"{self.plan.factory}: {'; '.join(self.plan.reasons)}; {codebook}: {self.reason}"


def keep_or_train(run: Run, context: IndexContext) -> tuple[CodebookEntry, CodebookChoice]:
    """Return the codebook to use, the base's or a newly trained one, and why."""
    choice = choose_codebook(run, context, run.base.body.codebook if run.base else None)
    if choice.reuse is None:
        choice.plan.reasons.append(describe_training(choice.plan, run.executor.hardware()))
    run.progress.message("index", choice.description)
    if choice.reuse is not None:
        run.executor.release("train")
        return choice.reuse, choice
    warm_coders(run, context.rows)
    return train_codebook(run, context, choice.plan), choice


def check_rows(run: Run, rows: int) -> None:
    """Raise IndexBuildError for an index that cannot be made of so many rows, before any of them is embedded.

    Whether the drift asks for a new codebook is known only afterwards.
    """
    _decide(run, rows, run.base.body.codebook if run.base else None, None)


def choose_codebook(run: Run, context: IndexContext, base: CodebookEntry | None) -> CodebookChoice:
    """Decide between the base's codebook and training a new one, as `index.retrain` says.

    Raises IndexBuildError if the recipe forbids the training that it needs, or for an impossible index.
    """
    rows, drift, kept = context.rows, None, ""
    if base is not None:
        since = sum(entry.live_rows for entry in context.segments if entry.number > base.last_segment)
        drift = measure_drift(run, context, base) if since > max_new(rows) else None
        too_few = f"too few to measure drift (minimum {max_new(rows) + 1:,})"
        kept = drift.description if drift else f"{counted(since, 'row')} came since training, {too_few}"
    plan, reason = _decide(run, rows, base, drift)
    return CodebookChoice(base if reason is None else None, plan, drift, reason or kept)


def _decide(run: Run, rows: int, base: CodebookEntry | None, drift: Drift | None) -> tuple[IndexPlan, str | None]:
    """Return the index to make, and why it needs a new codebook; None if it keeps the base's."""
    config, dim = run.recipe.index, run.spec.dim
    if base is None:
        return choose(config, rows, dim), "the store has no codebook of this encoder yet"
    if config.retrain == "never" and factory_of(config) not in ("auto", base.factory):
        raise IndexBuildError(
            f"index.factory is {config.factory!r}, the codebook of {run.store.url} is {base.factory!r} and "
            "index.retrain is never; set retrain to auto, or the factory to the codebook's"
        )
    reason = _reason_to_retrain(config, rows, dim, base, drift)
    return (keep(config, base.factory, rows, dim) if reason is None else choose(config, rows, dim)), reason


def _reason_to_retrain(
    config: IndexConfig, rows: int, dim: int, base: CodebookEntry, drift: Drift | None
) -> str | None:
    """Return why a new codebook is needed; None if it is not."""
    if factory_of(config) not in ("auto", base.factory):
        return f"the recipe asks for {config.factory} instead of {base.factory}"
    if config.retrain == "always":
        return "the recipe demands a new codebook each time"
    if config.retrain == "never":
        return None
    if config.factory == "auto":
        if not fits(config, base.factory, rows, dim):
            return f"{base.factory} has outgrown memory_gb {config.memory_gb:g}"
        growth = rows / base.corpus_rows
        # the rule is applied second, only if needed: it may raise an error for the present number of rows
        if not 1 / RETRAIN_GROWTH < growth < RETRAIN_GROWTH and choose(config, rows, dim).factory != base.factory:
            return f"the corpus has {growth:.2f} times the rows it was trained for"
    if drift is not None and drift.largest > config.max_drift:
        return f"{drift.description} is above max_drift {config.max_drift:g}"
    return None


@dataclass(frozen=True)
class DriftUnit:
    """The one unit of the stage: a codebook, and the segments that came later."""

    record: str
    codebook: CodebookEntry
    later: tuple[SegmentEntry, ...]
    deletions: ObjectRef | None
    share: float
    """The share of their live rows among all."""
    rows: int
    """Vectors to sample."""
    read_bytes: int


class DriftResult(Result):
    """The measurement; `rows` are the vectors that were sampled."""

    drift: Drift


def measure_drift(run: Run, context: IndexContext, base: CodebookEntry) -> Drift:
    """Return the drift of the live rows in segments later than the codebook, of which at most `DRIFT_ROWS` are read.

    A segment that holds copies of older rows counts as later, too.
    """
    later = tuple(entry for entry in context.segments if entry.number > base.last_segment)
    if base.quantisation_error == 0.0 and base.list_imbalance is None:  # an exact codebook without lists cannot drift
        return Drift(rows=_live(later), quantisation_error=0.0, list_imbalance=None)
    rows, record = min(DRIFT_ROWS, _live(later)), layout.record(layout.drift(run.run_id))
    read_bytes = base.object.size_bytes + rows * run.spec.stored_bytes
    unit = DriftUnit(record, base, later, context.deletions, _live(later) / context.rows, rows, read_bytes)
    # a coder has loaded FAISS while passages were encoded
    step = Step("drift", partial(MeasureDrift, run.store.url, run.executor.hardware()), "coder")
    work = Work.of(recorded(run.store.url, DriftResult, step))
    return run.result(Stage("drift", [unit], DriftResult, work)).drift


def _live(entries: Sequence[SegmentEntry]) -> int:
    return sum(entry.live_rows for entry in entries)


class MeasureDrift:
    """Codes a sample of later rows with the codebook."""

    def __init__(self, store_url: str, hardware: Hardware) -> None:
        self._store, self._threads = open_store(store_url), hardware.threads

    def __call__(self, unit: DriftUnit) -> DriftResult:
        base = unit.codebook
        sample_ND = sample_vectors(self._store, unit.later, unit.deletions, unit.rows, seed=0)
        codebook = read_faiss(fetch_object(self._store, base.object))
        with faiss_threads(self._threads):
            error, coded = quantisation_error(codebook, sample_ND)
        error = error / base.quantisation_error - 1.0 if base.quantisation_error else 0.0
        growth = None
        imbalance = list_imbalance(list_count(codebook), coded.lists_N) if coded else None
        if base.list_imbalance is not None and imbalance is not None:
            growth = imbalance_growth(base.list_imbalance, imbalance, unit.share)
        drift = Drift(rows=_live(unit.later), quantisation_error=error, list_imbalance=growth)
        return DriftResult(rows=len(sample_ND), drift=drift)
