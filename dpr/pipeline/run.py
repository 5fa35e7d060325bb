"""The stages of a run: scan → embed → train → build → merge → gate.

Each reads what the stage before it put into the store, so a run that died is continued by starting it again, and
every stage can be a job of its own.
"""

import json
from collections.abc import Sequence
from functools import cached_property, partial
from typing import Any

from dpr import layout
from dpr.corpus.diff import Changes, DiffInputs, PlannedSegment
from dpr.corpus.plan import slice_bytes
from dpr.corpus.rows import Slice
from dpr.encoder.compute import Compute
from dpr.errors import IntegrityError
from dpr.fingerprint import fingerprint
from dpr.index.train import trained_how
from dpr.manifest import CodebookEntry, IndexEntry, SegmentEntry, Snapshot
from dpr.pipeline.embed import EmbedContext, copy_steps, embed_steps, shared_tokenizer
from dpr.pipeline.estimate import FLOAT16_BYTES
from dpr.pipeline.execute import Executor, Progress, Stage, Step, Unit, begin_stage, run_units
from dpr.pipeline.gate import GateContext, MeasureIndex
from dpr.pipeline.index import BuildPart, IndexContext, TrainCodebook, codebook_id
from dpr.pipeline.merge import MergeShard, index_entry, merge_units, shard_reports
from dpr.pipeline.meter import Encoding, EncodingWatch
from dpr.pipeline.plan import Plan
from dpr.pipeline.report import Notes
from dpr.pipeline.retrain import CodebookChoice, choose_codebook
from dpr.pipeline.scan import FindChanges, ScanSlice, check_quarantine, check_size, collect_quarantine, load_known_keys
from dpr.records import Record
from dpr.snapshot import latest_snapshot, lineage_base
from dpr.store import Store, open_store

Gated = tuple[IndexEntry, dict[str, Any]]
"""The index with its search settings, and the gate's report."""


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
        self.notes = Notes(self.run_id)

    def stage(self, stage: Stage) -> list[Record]:
        """Run the unfinished units of a stage."""
        records, report = run_units(self.store, self.executor, self.progress, stage)
        self.notes.stages.append(report)
        return records

    def single(self, name: str, step: Step, object_name: str, unit: Unit) -> Record:
        """Run a stage of one unit, whose record stands beside `object_name`."""
        return self.stage(Stage(name, [step], [unit | {"record": layout.record(object_name)}]))[0]

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
                "read_bytes": size_bytes,
            }
            for number, (slice_, size_bytes) in enumerate(zip(self.slices, slice_bytes(self.slices), strict=True))
        ]
        step = Step(ScanSlice, (self.store.url, self.run_id, recipe.corpus, known))
        scans = self.stage(Stage("scan", [step], units))
        step = Step(FindChanges, (self.store.url, self.diff_inputs(self.slices)))
        compared = {"rows": sum(scan.rows for scan in scans), "read_bytes": sum(s.objects[0].size_bytes for s in scans)}
        record = self.single("diff", step, layout.changes(self.run_id), compared)
        changes = Changes.model_validate(record.facts)
        self.quarantined = sum(scan.facts["quarantined"] for scan in scans) + changes.duplicates
        self.notes.scanned(scans, changes)
        collect_quarantine(self.store, self.run_id)
        check_quarantine(self.store, self.run_id, self.quarantined, changes.passages, recipe.limits)
        before = self.live.body.passages if self.live else 0
        check_size(changes, before, recipe.limits, allow_shrink=allow_shrink)
        return changes

    def diff_inputs(self, slices: Sequence[Slice]) -> DiffInputs:
        """What the corpus, or some slices of it, is compared with."""
        return DiffInputs(
            self.run_id,
            self.spec.encoder_id,
            self.recipe.corpus,
            slices,
            self.base.body if self.base else None,
            self.recipe.resources.segment_rows,
            self.recipe.resources.compact_below,
        )

    def compute(self) -> Compute:
        """How encoders of this run compute."""
        resources, encoder = self.recipe.resources, self.recipe.encoder
        threads = resources.cpus_per_encoder or self.executor.encoder_threads()
        return Compute(encoder.precision, encoder.tokens_per_batch, threads, packing=encoder.packing)

    @cached_property
    def embed_steps(self) -> list[Step]:
        """What the embed stage does with a unit."""
        context, threads = self.embed_context(), self.executor.tokenizer_threads()
        return embed_steps(context, self.compute(), self.executor.share(shared_tokenizer, context), threads)

    def embed_context(self) -> EmbedContext:
        recipe, slices = self.recipe, tuple(self.slices)
        return EmbedContext(self.store.url, self.run_id, recipe.encoder, self.spec.encoder_id, recipe.corpus, slices)

    def scan_and_embed(self, *, allow_shrink: bool = False) -> tuple[Changes, list[SegmentEntry]]:
        """Both, while encoders load during the first."""
        begin_stage(self.store, self.executor, "embed", self.embed_steps)
        try:
            changes = self.scan(allow_shrink=allow_shrink)
        except BaseException:
            self.executor.leave("embed")
            raise
        return changes, self.embed(changes)

    def embed(self, changes: Changes) -> list[SegmentEntry]:
        """Make the planned segments; returns all segments of the new state."""
        base = self.base.body.segments if self.base else []
        ids = {e.number: e.segment_id for e in base} | {u.number: u.segment_id for u in changes.planned}
        made = list(changes.kept)
        refused: list[str] = []
        # copies last: they may take vectors of segments that this run embeds
        for kind, steps in (("embed", self.embed_steps), ("copy", copy_steps(self.embed_context(), ids))):
            units = [unit for unit in changes.planned if unit.kind == kind]
            if not units and kind == "copy":
                continue
            names = [layout.segment(self.spec.encoder_id, unit.segment_id) for unit in units]
            work = [
                unit.model_dump(mode="json")
                | {"record": layout.record(name), "read_bytes": int(unit.rows * self.notes.new_row_bytes)}
                for unit, name in zip(units, names, strict=True)
            ]
            watch = EncodingWatch(self.progress.say) if kind == "embed" else None
            records = self.stage(Stage(kind, steps, work, watch))
            if kind == "embed":
                self.notes.encoding = Encoding.of(records)
            for unit, record in zip(units, records, strict=True):
                self._check_rows(unit, record)
                refused += [ref.name for ref in record.objects[1:]]
            made += [
                SegmentEntry(number=unit.number, segment_id=unit.segment_id, rows=record.rows, object=record.objects[0])
                for unit, record in zip(units, records, strict=True)
                if record.rows
            ]
        self.notes.reasons = collect_quarantine(self.store, self.run_id, refused)
        usable = sum(entry.live_rows for entry in made)
        check_quarantine(self.store, self.run_id, self.quarantined, usable, self.recipe.limits)
        return sorted(made, key=lambda entry: entry.number)

    def _check_rows(self, unit: PlannedSegment, record: Record) -> None:
        """Count the rows that the encoder refused; IntegrityError unless they and the segment's are those planned."""
        refused = record.facts["quarantined"]
        self.quarantined += refused
        if record.rows + refused != unit.rows:
            raise IntegrityError(
                f"segment {unit.segment_id} was planned with {unit.rows} rows; it has {record.rows}, and {refused} are "
                "in quarantine: nothing was published, and this is a defect to be reported"
            )

    def index_context(self, segments: Sequence[SegmentEntry]) -> IndexContext:
        return IndexContext(self.store.url, self.spec.encoder_id, self.spec.dim, self.recipe.index, tuple(segments))

    def train(self, segments: Sequence[SegmentEntry]) -> tuple[CodebookEntry, CodebookChoice]:
        """The codebook to use: the base's, or a new one."""
        context = self.index_context(segments)
        choice = choose_codebook(self.store, context, self.base.body.codebook if self.base else None)
        if choice.reuse is not None:
            self.progress.say("index", choice.said)
            return choice.reuse, choice
        hardware = self.executor.hardware()
        choice.plan.reasons.append(trained_how(choice.plan, hardware))
        self.progress.say("index", choice.said)
        name = codebook_id(context, choice.plan)
        step = Step(TrainCodebook, (context, choice.plan, hardware), on="trainer")
        rows = min(choice.plan.train_rows, context.rows)
        unit = {"rows": rows, "read_bytes": rows * self.spec.dim * FLOAT16_BYTES, "codebook_id": name}
        record = self.single("train", step, layout.codebook(self.spec.encoder_id, name), unit)
        return CodebookEntry.model_validate(record.facts), choice

    def build(self, segments: Sequence[SegmentEntry], codebook: CodebookEntry, choice: CodebookChoice) -> None:
        """One part a segment, for kinds of index that are made from parts."""
        if not choice.plan.mergeable:
            return
        units = [
            {
                "record": layout.record(layout.part(codebook.codebook_id, entry.segment_id)),
                "rows": entry.rows,
                "read_bytes": entry.object.size_bytes,
                "segment": entry.to_bytes().decode(),
            }
            for entry in segments
        ]
        step = Step(BuildPart, (self.index_context(segments), codebook, self.executor.hardware()), on="coder")
        self.stage(Stage("build", [step], units))

    def merge(self, segments: Sequence[SegmentEntry], codebook: CodebookEntry, choice: CodebookChoice) -> IndexEntry:
        """The serving index; its search settings are still the plan's."""
        context = self.index_context(segments)
        units = merge_units(context, codebook, choice.plan.bytes_per_vector)
        merging = partial(MergeShard, mergeable=choice.plan.mergeable)
        index = index_entry(units, self.stage(Stage("merge", [Step(merging, (context, codebook))], units)))
        self.notes.shards = shard_reports(self.store, index)
        return index

    def gate(self, segments: Sequence[SegmentEntry], index: IndexEntry) -> Gated:
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
        unit = {
            "rows": len(self.plan.questions.questions) if self.plan.questions else 0,
            "read_bytes": index.size_bytes + sum(entry.object.size_bytes for entry in segments),
            "index": index.to_bytes().decode(),
        }
        record = self.single("gate", Step(MeasureIndex, (context,)), name, unit)
        settings = {"nprobe": record.facts["nprobe"], "rescore": record.facts["rescore"]}
        return index.model_copy(update=settings), record.facts["report"]
