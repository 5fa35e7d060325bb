"""One run of a recipe: scan → embed → train → build → merge → gate → publish.

Each stage reads what the stage before it put into the store, so a run that died is continued by starting it again, and
every stage can be a job of its own.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from dpr import layout
from dpr.corpus.diff import Changes, DiffInputs
from dpr.corpus.plan import plan_slices
from dpr.corpus.rows import Slice
from dpr.encoder.compute import Compute
from dpr.encoder.spec import EncoderSpec, resolve
from dpr.errors import PublishRaceError
from dpr.evaluate.questions import QuestionSet, load_questions
from dpr.fingerprint import fingerprint
from dpr.index.train import trained_how
from dpr.manifest import CodebookEntry, IndexEntry, SegmentEntry, Snapshot, SnapshotBody
from dpr.pipeline.embed import EmbedContext, copy_steps, embed_steps
from dpr.pipeline.execute import Executor, Progress, Step, Unit, run_units
from dpr.pipeline.gate import GateContext, MeasureIndex, check_gate
from dpr.pipeline.index import (
    BuildPart,
    CodebookChoice,
    IndexContext,
    MergeParts,
    TrainCodebook,
    choose_codebook,
    codebook_id,
)
from dpr.pipeline.scan import FindChanges, ScanSlice, check_quarantine, check_size, collect_quarantine, load_known_keys
from dpr.recipe import Recipe
from dpr.records import Record
from dpr.snapshot import latest_snapshot, lineage_base, publish
from dpr.store import Store, open_store
from dpr.store.lease import Lease
from dpr.store.proof import prove_put_if_absent

PUBLISH_ATTEMPTS = 3


@dataclass(frozen=True)
class Outcome:
    """How a run ended."""

    snapshot: Snapshot
    published: bool
    """False: the live snapshot holds all this already."""
    report: dict[str, Any]


@dataclass(frozen=True)
class Plan:
    """What a recipe means on this machine at this moment, before looking at the store."""

    recipe: Recipe
    spec: EncoderSpec
    slices: list[Slice]
    questions: QuestionSet | None

    @classmethod
    def of(cls, recipe: Recipe) -> "Plan":
        """Resolve the encoder, list the corpus, read the gate's questions."""
        questions = load_questions(recipe.gate, recipe.index.seed)
        return cls(recipe, resolve(recipe.encoder), plan_slices(recipe.corpus), questions)

    @cached_property
    def inputs(self) -> str:
        """Fingerprint of all that a snapshot depends on: with the same inputs there is nothing to do."""
        recipe = self.recipe
        asked = [[q.text, list(q.answers)] for q in self.questions.questions] if self.questions else None
        return fingerprint(
            {
                "encoder": self.spec.encoder_id,
                "corpus": recipe.corpus.model_dump(mode="json", exclude={"path"}),
                "slices": [slice_.to_json() for slice_ in self.slices],
                "index": recipe.index.model_dump(mode="json"),
                "gate": recipe.gate.model_dump(mode="json", include={"answers", "at"}),
                "questions": asked,
                "segment_rows": recipe.resources.segment_rows,
                "compact_below": recipe.resources.compact_below,
            }
        )


class Run:
    """A plan against the state of its store."""

    def __init__(self, plan: Plan, executor: Executor, progress: Progress) -> None:
        self.plan, self.executor, self.progress = plan, executor, progress
        self.recipe, self.spec, self.slices = plan.recipe, plan.spec, plan.slices
        self.store: Store = open_store(self.recipe.store)
        self.live: Snapshot | None = latest_snapshot(self.store)
        self.base: Snapshot | None = lineage_base(self.store, self.spec.encoder_id)
        base_id = self.base.body.body_id() if self.base else None
        # the same inputs on the same base are the same run
        self.run_id = fingerprint({"inputs": self.plan.inputs, "base": base_id})
        self.quarantined = 0

    def stage(self, name: str, steps: Sequence[Step], units: Sequence[Unit]) -> list[Record]:
        """Run the unfinished units of a stage."""
        return run_units(self.store, self.executor, self.progress, name, steps, units)

    def single(self, name: str, step: Step, object_name: str, rows: int, unit: Unit | None = None) -> Record:
        """Run a stage of one unit, whose record stands beside `object_name`."""
        done = {"record": layout.record(object_name), "rows": rows}
        return self.stage(name, [step], [done | (unit or {})])[0]

    # the stages

    def scan(self, *, allow_shrink: bool = False) -> Changes:
        """Find what changed; quarantine what cannot be used; refuse a corpus that is empty, spoilt or shrunk."""
        recipe, base = self.recipe, self.base.body if self.base else None
        known = self.executor.share(
            load_known_keys, self.store.url, [entry.object.name for entry in base.segments] if base else []
        )
        units = [
            {
                "record": layout.record(layout.scan_keys(self.run_id, number)),
                "rows": 0,
                "number": number,
                "slice": json.dumps(slice_.to_json()),
            }
            for number, slice_ in enumerate(self.slices)
        ]
        scans = self.stage("scan", [Step(ScanSlice, (self.store.url, self.run_id, recipe.corpus, known))], units)
        inputs = DiffInputs(
            self.run_id,
            self.spec.encoder_id,
            recipe.corpus,
            self.slices,
            base,
            recipe.resources.segment_rows,
            recipe.resources.compact_below,
        )
        step = Step(FindChanges, (self.store.url, inputs))
        record = self.single("diff", step, layout.changes(self.run_id), sum(scan.rows for scan in scans))
        changes = Changes.model_validate(record.facts)
        self.quarantined = sum(scan.facts["quarantined"] for scan in scans) + changes.duplicates
        check_quarantine(self.store, self.run_id, self.quarantined, changes.passages, recipe.limits)
        before = self.live.body.passages if self.live else 0
        check_size(changes, before, recipe.limits, allow_shrink=allow_shrink)
        return changes

    def embed(self, changes: Changes) -> list[SegmentEntry]:
        """Make the planned segments; returns all segments of the new state."""
        base = self.base.body.segments if self.base else []
        ids = {e.number: e.segment_id for e in base} | {u.number: u.segment_id for u in changes.planned}
        context = EmbedContext(self.store.url, self.run_id, self.recipe.encoder, self.spec.encoder_id, ids)
        resources, encoder = self.recipe.resources, self.recipe.encoder
        compute = Compute(
            encoder.precision,
            encoder.tokens_per_batch,
            resources.cpus_per_encoder or self.executor.encoder_threads(),
            packing=encoder.packing,
        )
        made = list(changes.kept)
        # copies last: they may take vectors of segments that this run embeds
        threads = self.executor.tokenizer_threads()
        for kind, steps in (("embed", embed_steps(context, compute, threads)), ("copy", copy_steps(context))):
            units = [unit for unit in changes.planned if unit.kind == kind]
            if not units and kind == "copy":
                continue
            names = [layout.segment(self.spec.encoder_id, unit.segment_id) for unit in units]
            work = [
                unit.model_dump(mode="json") | {"record": layout.record(name)}
                for unit, name in zip(units, names, strict=True)
            ]
            records = self.stage(kind, steps, work)
            self.quarantined += sum(record.facts["quarantined"] for record in records)
            made += [
                SegmentEntry(number=unit.number, segment_id=unit.segment_id, rows=record.rows, object=record.objects[0])
                for unit, record in zip(units, records, strict=True)
                if record.rows
            ]
        check_quarantine(self.store, self.run_id, self.quarantined, changes.passages, self.recipe.limits)
        collect_quarantine(self.store, self.run_id)
        return sorted(made, key=lambda entry: entry.number)

    def index_context(self, segments: Sequence[SegmentEntry]) -> IndexContext:
        return IndexContext(self.store.url, self.spec.encoder_id, self.spec.dim, self.recipe.index, tuple(segments))

    def train(self, segments: Sequence[SegmentEntry]) -> tuple[CodebookEntry, CodebookChoice]:
        """The codebook to use: the base's, or a new one."""
        context = self.index_context(segments)
        old = {entry.segment_id for entry in self.base.body.segments} if self.base else set()
        new = [entry for entry in segments if entry.segment_id not in old]
        choice = choose_codebook(self.store, context, self.base.body.codebook if self.base else None, new)
        if choice.reuse is not None:
            return choice.reuse, choice
        hardware = self.executor.hardware()
        choice.plan.reasons.append(trained_how(choice.plan, hardware))
        name = codebook_id(context, choice.plan)
        step = Step(TrainCodebook, (context, choice.plan, hardware), on="trainer")
        rows = min(choice.plan.train_rows, context.rows)
        record = self.single("train", step, layout.codebook(self.spec.encoder_id, name), rows, {"codebook_id": name})
        return CodebookEntry.model_validate(record.facts), choice

    def build(self, segments: Sequence[SegmentEntry], codebook: CodebookEntry, choice: CodebookChoice) -> None:
        """One part a segment, for kinds of index that are made from parts."""
        if not choice.plan.mergeable:
            return
        units = [
            {
                "record": layout.record(layout.part(codebook.codebook_id, entry.segment_id)),
                "rows": entry.rows,
                "segment": entry.to_bytes().decode(),
            }
            for entry in segments
        ]
        step = Step(BuildPart, (self.index_context(segments), codebook, self.executor.hardware()), on="coder")
        self.stage("build", [step], units)

    def merge(self, segments: Sequence[SegmentEntry], codebook: CodebookEntry, choice: CodebookChoice) -> IndexEntry:
        """The serving index; its search settings are still the plan's."""
        context = self.index_context(segments)
        index_id = fingerprint({"codebook": codebook.codebook_id, "segments": context.state})
        step = Step(MergeParts, (context, codebook, choice.plan))
        record = self.single("merge", step, layout.index(index_id), context.rows, {"index_id": index_id})
        return IndexEntry(index_id=index_id, rows=record.rows, nprobe=1, rescore=0, object=record.objects[0])

    def gate(self, segments: Sequence[SegmentEntry], index: IndexEntry) -> tuple[IndexEntry, dict[str, Any]]:
        """Tune and measure; returns the index with its search settings, and the gate's report."""
        recipe = self.recipe
        context = GateContext(
            self.store.url,
            recipe.encoder,
            self.spec.encoder_id,
            self.spec.dim,
            recipe.gate,
            recipe.index,
            self.plan.questions,
            tuple(segments),
        )
        name = context.measured(index.index_id)
        rows = len(self.plan.questions.questions) if self.plan.questions else 0
        record = self.single("gate", Step(MeasureIndex, (context,)), name, rows, {"index": index.to_bytes().decode()})
        check_gate(recipe.gate, record.facts["report"])
        settings = {"nprobe": record.facts["nprobe"], "rescore": record.facts["rescore"]}
        return index.model_copy(update=settings), record.facts["report"]

    def publish(
        self,
        changes: Changes,
        segments: Sequence[SegmentEntry],
        codebook: CodebookEntry,
        index: IndexEntry,
        gate: dict[str, Any],
    ) -> Outcome:
        """Bind everything into the next snapshot, unless the live one is the same."""
        body = SnapshotBody(
            encoder_id=self.spec.encoder_id,
            encoder=self.spec.describe(),
            passages=sum(entry.live_rows for entry in segments),
            segments=list(segments),
            next_segment_number=changes.next_segment_number,
            codebook=codebook,
            index=index,
            gate=gate,
        )
        report = {
            "run": self.run_id,
            "changes": changes.model_dump(mode="json", exclude={"kept", "planned"}),
            "gate": gate,
        }
        if self.live is not None and self.live.body.body_id() == body.body_id():
            return Outcome(self.live, False, report)
        parent = self.live.number if self.live else None
        snapshot = publish(self.store, body, parent, run_id=self.run_id, inputs=self.plan.inputs)
        return Outcome(snapshot, True, report)

    def all_stages(self, lease: Lease, *, allow_shrink: bool = False) -> Outcome:
        """The whole road, from corpus to published snapshot; `lease` must still be held when it ends."""
        changes = self.scan(allow_shrink=allow_shrink)
        segments = self.embed(changes)
        codebook, choice = self.train(segments)
        self.build(segments, codebook, choice)
        index, gate = self.gate(segments, self.merge(segments, codebook, choice))
        lease.check()
        return self.publish(changes, segments, codebook, index, gate)


def run_recipe(recipe: Recipe, executor: Executor, progress: Progress, *, allow_shrink: bool = False) -> Outcome:
    """Bring the collection of a recipe up to date; nothing at all is done if the live snapshot has the same inputs."""
    plan = Plan.of(recipe)
    return finished_run(plan) or run_plan(plan, executor, progress, allow_shrink=allow_shrink)


def run_plan(plan: Plan, executor: Executor, progress: Progress, *, allow_shrink: bool = False) -> Outcome:
    """Carry a plan out, with the store's lease in hand.

    If somebody else publishes first (a rollback, say), the recipe is planned again on the new parent; what has been
    made already is used.
    """
    store = open_store(plan.recipe.store)
    with Lease.acquire(store, f"run of {plan.recipe.store}") as lease:
        prove_put_if_absent(store)
        for _ in range(PUBLISH_ATTEMPTS - 1):
            try:
                return Run(plan, executor, progress).all_stages(lease, allow_shrink=allow_shrink)
            except PublishRaceError:
                plan = Plan.of(plan.recipe)
        return Run(plan, executor, progress).all_stages(lease, allow_shrink=allow_shrink)


def finished_run(plan: Plan) -> Outcome | None:
    """The outcome of a run that has nothing to do, or None. Costs one small read."""
    live = latest_snapshot(open_store(plan.recipe.store))
    if live is None or live.inputs != plan.inputs:
        return None
    return Outcome(live, False, {"gate": live.body.gate})
