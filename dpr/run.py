"""A run: a recipe as resolved now, compared with the state of its store, and the means to carry it out."""

import datetime
import time
import uuid
from dataclasses import dataclass
from functools import cached_property

from pydantic import ValidationError

from dpr.corpus.rows import FileKind, Slice, Windows
from dpr.corpus.slices import CorpusPlan, plan_slices
from dpr.encoder.spec import EncoderSpec, resolve
from dpr.engine.executor import Executor
from dpr.engine.progress import Progress
from dpr.engine.run_state import Ending, Prices, RunState, StageReport
from dpr.engine.run_units import run_units
from dpr.engine.stage import R, Stage, U
from dpr.engine.stage_meter import StageMeter
from dpr.errors import MissingObjectError
from dpr.evaluate.questions import QuestionSet, load_questions
from dpr.fingerprint import fingerprint
from dpr.formats import layout
from dpr.formats.manifest import SegmentEntry, Snapshot
from dpr.formats.records import Document, ObjectRef
from dpr.formats.snapshots import latest_snapshot, lineage
from dpr.lexical.analysis import check_language
from dpr.recipe import Recipe
from dpr.retired import as_retired, retired_segments, words_of
from dpr.store import Store, open_store
from dpr.store.lease import Lease


class RunPlan(Document):
    """`runs/RUN/plan.json`: the inputs of a run; written once, for garbage collection and for the next plan."""

    encoder_id: str
    scans: list[str]
    """Record names of its scan units."""
    kinds: dict[str, FileKind]
    """The kinds of the corpus files, so that the next run need not open them."""


def read_run_plan(store: Store, run_id: str) -> RunPlan | None:
    """Return the stored inputs of a run; None if they were collected as garbage, or if another version wrote them."""
    try:
        return RunPlan.model_validate_json(store.get(layout.plan(run_id)))
    except (MissingObjectError, ValidationError):
        return None


@dataclass(frozen=True)
class Plan:
    """A recipe resolved on this machine at this moment, before the store's state decides what has to be done."""

    recipe: Recipe
    spec: EncoderSpec
    corpus: CorpusPlan
    questions: QuestionSet | None
    scanned: frozenset[str]
    """Record names of the scans that the live snapshot was made from."""

    @classmethod
    def of(cls, recipe: Recipe) -> "Plan":
        """Resolve the encoder, list the corpus, and read the gate's questions; the index's factory is tried."""
        check_language(recipe.lexical)
        questions = load_questions(recipe.gate, recipe.index.seed)
        before = _plan_of_live(open_store(recipe.store))
        spec = resolve(recipe.encoder)
        if recipe.index.factory != "auto":
            from dpr.index.choose import check_factory  # FAISS takes a fifth of a second to import

            check_factory(recipe.index, spec.dim)
        windows = Windows(encoder=spec.config, encoder_id=spec.encoder_id)
        corpus = plan_slices(recipe.corpus, before.kinds if before else {}, windows, recipe.store)
        return cls(recipe, spec, corpus, questions, frozenset(before.scans if before else ()))

    @property
    def slices(self) -> list[Slice]:
        return self.corpus.slices

    @cached_property
    def inputs(self) -> str:
        """Fingerprint of everything that a snapshot depends on: with the same inputs there is nothing to do."""
        recipe = self.recipe
        questions = [[q.text, list(q.answers)] for q in self.questions.questions] if self.questions else None
        return fingerprint(
            {
                "encoder": self.spec.encoder_id,
                "precision": self.spec.config.precision,
                "corpus": [slice_.slice_id(recipe.corpus) for slice_ in self.slices],
                "index": recipe.index.model_dump(mode="json"),
                "lexical": recipe.lexical.model_dump(mode="json"),
                "gate": recipe.gate.model_dump(mode="json", include={"answers", "at"}),
                "questions": questions,
                "segment_rows": recipe.resources.segment_rows,
                "compact_below": recipe.resources.compact_below,
            }
        )


def _plan_of_live(store: Store) -> RunPlan | None:
    """Return the stored inputs of the live snapshot's run; without them all files are opened again."""
    live = latest_snapshot(store)
    return read_run_plan(store, live.run_id) if live else None


class Clock:
    """When an attempt began."""

    def __init__(self) -> None:
        self._started = time.monotonic()
        now = datetime.datetime.now(datetime.UTC)
        self.attempt = f"{now:%Y%m%dT%H%M%S_%fZ}-{uuid.uuid4().hex[:8]}"

    def seconds(self) -> float:
        """Return the seconds since then."""
        return round(time.monotonic() - self._started, 3)


class Run:
    """A plan against the state of its store; one attempt to carry it out."""

    def __init__(self, plan: Plan, executor: Executor, progress: Progress, lease: Lease | None = None) -> None:
        self.plan, self.executor, self.progress = plan, executor, progress
        self.recipe, self.spec, self.slices = plan.recipe, plan.spec, plan.slices
        self.store: Store = open_store(self.recipe.store)
        self._lease = lease
        self.live: Snapshot | None = latest_snapshot(self.store)
        history = lineage(self.store, self.spec.encoder_id)
        snapshots = history.snapshots
        for damaged in history.damaged:
            progress.message(
                "store", f"{damaged.problem}; the run continues, and embeds again what only that snapshot holds"
            )
        self.base: Snapshot | None = snapshots[-1] if snapshots else None
        """The newest snapshot made with this encoder."""
        self.retired = retired_segments(self.store, snapshots)
        """Segments of older kept snapshots that the base does not hold: what they hold is not embedded again."""
        self.words = words_of(snapshots, [*self.base_segments, *self.retired])
        """The lexical parts that snapshots name for the segments of the base and the retired ones."""
        self.converts = False
        """Whether the retired segments have another form than this run stores, so that none is reused unchanged."""
        if self.base is None and self.spec.store_as == "int8":
            wider = lineage(self.store, self.spec.float16_id).snapshots
            self.retired = as_retired(wider[-1].body.segments) if wider else []
            self.converts = bool(self.retired)
        self.run_id = fingerprint(
            {
                "inputs": self.plan.inputs,
                "base": self.base.body.body_id() if self.base else None,
                "retired": [entry.object.sha256 for entry in self.retired],
                # a run that reads all files reuses no scans of an earlier run, not even those of the same inputs
                "attempt": uuid.uuid4().hex if self.recipe.corpus.rescan == "always" else None,
            }
        )
        self.clock = Clock()
        self.stage_reports: list[StageReport] = []
        """Reports of the stages that have ended, completely or by an error."""
        self.gpus = 0.0
        """GPUs that encoders held at the last check."""
        self.expected_seconds: float | None = None
        """Estimated time of the stages."""
        self.ending: Ending | None = None
        self.is_reported = False
        """Whether the report of this attempt is stored."""
        self._meter: StageMeter | None = None
        if lease is not None:
            lease.account = lambda: self.state().to_bytes()

    @property
    def base_segments(self) -> list[SegmentEntry]:
        return self.base.body.segments if self.base else []

    @property
    def base_deletions(self) -> ObjectRef | None:
        return self.base.body.deletions if self.base else None

    @property
    def prices(self) -> Prices:
        """Return the prices in the recipe."""
        resources = self.recipe.resources
        return Prices(
            gpu_hour=resources.price_per_gpu_hour,
            thousand_reads=resources.price_per_1000_reads,
            thousand_writes=resources.price_per_1000_writes,
        )

    def state(self) -> RunState:
        """Return the state of this attempt; any thread may call it."""
        meter, stages = self._meter, list(self.stage_reports)
        return RunState(
            run=self.run_id,
            attempt=self.clock.attempt,
            base=self.base.number if self.base else None,
            seconds=self.clock.seconds(),
            stages=stages if meter is None else [*stages, meter.report()],
            gpus=self.gpus,
            prices=self.prices,
            expected_seconds=self.expected_seconds,
            ending=self.ending,
            is_reported=self.is_reported,
        )

    def results(self, stage: Stage[U, R]) -> list[R]:
        """Run the units of a stage that are not done, and return the results of all, in the order of the units.

        Raises ConflictError if the lease was lost meanwhile.
        """
        self.check_lease()
        self.gpus = self.executor.cluster().gpus
        meter = self._meter = StageMeter(stage.name)
        if self._lease is not None:
            self._lease.beat_soon()
        try:
            return run_units(self.store, self.executor, self.progress, stage, meter)
        finally:
            self._meter = None
            self.stage_reports.append(meter.report())

    def check_lease(self) -> None:
        """Raise ConflictError if this run has lost the store's lease."""
        if self._lease is not None:
            self._lease.check()

    def result(self, stage: Stage[U, R]) -> R:
        """Run a stage of one unit."""
        return self.results(stage)[0]
