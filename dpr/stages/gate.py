"""The gate: recall against exact search and accuracy on known questions, measured before a snapshot is published.

Shapes: Q questions, K neighbours.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial

import numpy as np

from dpr.engine.room import Need, check_room
from dpr.engine.stage import Done, Stage, Step, Work, recorded
from dpr.evaluate.questions import QuestionSet
from dpr.fingerprint import fingerprint
from dpr.formats import layout
from dpr.formats.gate_report import GateReport
from dpr.formats.manifest import CodebookEntry, DeeperSettings, IndexEntry
from dpr.formats.objects import bytes_to_fetch
from dpr.formats.records import ObjectRef, Result
from dpr.index.hardware import Hardware, faiss_threads
from dpr.index.recall import KnownQuestions
from dpr.index.serving_index import ServingIndex
from dpr.index.shards import Shard
from dpr.index.truth import Ids, Scores, recall_at
from dpr.index.tune import Tuned, TunePoint, tune
from dpr.index.tuned_sentence import describe
from dpr.recipe import GateConfig
from dpr.recipe_index import IndexConfig
from dpr.run import Run
from dpr.search.opened import OpenObjects
from dpr.search.segment_set import SegmentSet
from dpr.search.vector_search import VectorSearch, open_index, open_shards
from dpr.stages.answer_ranks import put_ranks, shares_within, tell_unanswered
from dpr.stages.find_truth import Truth, find_truth
from dpr.stages.fp8_loss import fp8_loss
from dpr.stages.index_loss import Answered, describe_settings, loss_of_sentences
from dpr.stages.new_sentences import NewSentences, new_sentences
from dpr.stages.passages_found import WINDOWS_DEEPER, answered_ranks, recall_of_segments, true_passages
from dpr.stages.question_halves import split_questions
from dpr.stages.question_vectors import read_questions
from dpr.stages.train import IndexContext
from dpr.store import Store, open_store
from dpr.store.mapped_files import keeping_more

LOADED_SHARE = 0.9
"""Memory that an opened shard takes at least, as a share of its file; 0.96 was measured."""


@dataclass(frozen=True)
class GateUnit:
    """The one unit of the stage: an index, and the questions and exact neighbours for measuring it."""

    record: str
    ranks_stem: str
    """Start of the name of the object with the ranks of answers."""
    context: IndexContext
    index: IndexEntry
    truth: Truth
    questions: QuestionSet | None
    new: NewSentences | None
    rows: int
    read_bytes: int
    windows: bool = False
    """Whether rows may be windows of long texts: passages are compared then, each by its best window."""

    @property
    def need(self) -> Need:
        return serving_need(self.index.files)


def serving_need(files: Sequence[ObjectRef]) -> Need:
    """Return the need of searching: all shards in memory, which share the codebook that each file holds. Pure.

    No codebook is larger than the smallest shard.
    """
    sizes = [file.size_bytes for file in files]
    memory_bytes = int(LOADED_SHARE * (sum(sizes) - (len(sizes) - 1) * min(sizes)))
    return Need(memory_bytes=memory_bytes, smaller="set index.memory_gb to what there is")


class GateResult(Result):
    """The gate's measurements; `rows` are the questions."""

    report: GateReport
    nprobe: int
    margin: float | None
    rescore: int
    deeper: DeeperSettings | None
    recall_target: float
    curve: list[TunePoint]
    """All settings that tuning tried."""


def gate(run: Run, context: IndexContext, codebook: CodebookEntry, index: IndexEntry) -> tuple[IndexEntry, GateResult]:
    """Measure an index; returns it with the search settings that were chosen, and the measurement."""
    depth = max(context.config.recall_at, *run.recipe.gate.at)
    truth = find_truth(run, context, depth * (WINDOWS_DEEPER if run.recipe.corpus.splits_long else 1))
    new = new_sentences(run, context, codebook)
    unit = _plan_gate(run, context, index, truth, new)
    result = run.result(Stage("gate", [unit], GateResult, _gate_work(run)))
    report = result.report.model_copy(update={"fp8": fp8_loss(run, context, truth)})
    run.progress.message("search", result.report.settings)
    tell_unanswered(run, result.report.ranks, max(run.recipe.gate.at))
    chosen = {name: getattr(result, name) for name in ("nprobe", "margin", "rescore", "deeper")}
    return index.model_copy(update=chosen), result.model_copy(update={"report": report})


def begin_gate(run: Run) -> None:
    """Begin to load what the stage needs, where that helps: also the base's index, most of which is likely to stay."""
    same = run.base is not None and run.base.body.encoder_id == run.spec.encoder_id
    run.executor.begin("gate", _gate_work(run, run.base.body.index if run.base and same else None))


def _gate_work(run: Run, before: IndexEntry | None = None) -> Work[GateUnit, Done[GateResult]]:
    make = partial(MeasureIndex, run.store.url, run.recipe.gate, run.executor.hardware(), before)
    step: Step[GateUnit, GateResult] = Step("gate", make, "trainer")
    return Work.of(recorded(run.store.url, GateResult, step))


def _plan_gate(run: Run, context: IndexContext, index: IndexEntry, truth: Truth, new: NewSentences | None) -> GateUnit:
    """Return the unit; its record is named by everything that the measurement depends on."""
    questions = run.plan.questions
    aims = {"nprobe", "rescore", "recall_target", "recall_at", "latency_ms", "seed"}
    measure_id = fingerprint(
        {
            "index": index.index_id,
            "segments": context.state,
            "new": [ref.name for ref in new.vectors] if new else None,
            "answers": [list(q.answers) for q in questions.questions] if questions else None,
            "gate": run.recipe.gate.model_dump(mode="json", include={"answers", "at"}),
            "aims": context.config.model_dump(mode="json", include=aims),
            **({"windows": True} if run.recipe.corpus.splits_long else {}),
        }
    )
    names = context.encoder_id, truth.questions_id, measure_id
    record, ranks_stem = layout.record(layout.measured(*names)), layout.answer_ranks(*names)
    rows, windows = len(truth.ids_QK), run.recipe.corpus.splits_long
    return GateUnit(record, ranks_stem, context, index, truth, questions, new, rows, index.size_bytes, windows)


class MeasureIndex:
    """Tunes the search settings on the gate's questions and measures recall and accuracy."""

    def __init__(self, store_url: str, gate: GateConfig, hardware: Hardware, before: IndexEntry | None = None) -> None:
        """`before`: an index that is opened now, since the one to measure is likely to have shards of it."""
        self._store_url, self._gate, self._hardware = store_url, gate, hardware
        self._opened, self._before = OpenObjects(), dict[ObjectRef, Shard]()
        if before is not None:
            store = open_store(store_url)
            _check_room(store, before.index_id, before.files)
            self._before = dict(zip(before.files, open_shards(store, before, self._opened), strict=True))

    def __call__(self, unit: GateUnit) -> GateResult:
        context, truth = unit.context, unit.truth
        store = open_store(self._store_url)
        wanted = unit.index.files
        self._before = {file: shard for file, shard in self._before.items() if file in wanted}
        _check_room(store, unit.record, [file for file in wanted if file not in self._before])
        questions_QD = read_questions(store, truth.vectors)
        segments = SegmentSet.open(store, context.segments, context.deletions, verify=False)
        own = len(unit.questions.questions) if unit.questions else len(questions_QD)
        tuning, held_out = split_questions(own, context.config.seed)
        with faiss_threads(self._hardware.threads), keeping_more():
            index = open_index(store, unit.index, segments, self._opened)
            known = KnownQuestions(questions_QD, truth.scores_QK, truth.ids_QK, segments.fetching)
            tuned, deeper = self._tune(index, known.some(tuning), context.config)
            more = deeper.settings if deeper else None
            search = VectorSearch(index, tuned.settings, segments, more, windows=unit.windows)
            true = true_passages(unit.truth, search, questions_QD)
            sentences_QD = unit.new.read(store) if unit.new else questions_QD[:0]
            # all at once, since each search of a remote store fetches vectors again
            at, question_rows = context.config.recall_at, len(questions_QD)
            scores_QK, ids_QK = search.top(np.concatenate([questions_QD, sentences_QD]), at)
            if unit.windows:
                recall = recall_at(search.passages(ids_QK[held_out]), search.passages(true[1][held_out]), at)
            else:
                (recall,) = known.some(held_out).recalls(ids_QK[held_out], at, [at])
            of_new = scores_QK[question_rows:], ids_QK[question_rows:]
            new_recall = recall_of_segments(unit.new.segments, search, sentences_QD, of_new) if unit.new else None
            answered = self._answered(unit, search, questions_QD[:own], ids_QK[:own], true[1][:own])
            sentences_S = np.arange(own, question_rows) if unit.questions else held_out
            losses = [answered.loss(held_out, at)] if unit.questions else []
            losses += loss_of_sentences(unit.truth, search, sentences_S, ids_QK, true[1][:, :at])
        report = GateReport(
            questions=own,
            question_kind="sentences" if unit.questions is None else "questions",
            questions_id=truth.questions_id,
            questions_cut=truth.cut,
            recall=recall,
            measured_on=len(held_out),
            tuned_recall=tuned.recall,
            tuned_on=len(tuning),
            new_recall=new_recall,
            new_sentences=len(sentences_QD),
            deeper_recall=deeper.recall if deeper else None,
            meets_recall_target=tuned.meets_target,
            predicted_ms=round(tuned.predicted_ms, 6),
            meets_latency=tuned.meets_latency,
            settings=describe(tuned, context.config),
            accuracy_index=shares_within(answered.by_index, self._gate.at),
            accuracy_exact=shares_within(answered.exactly, self._gate.at),
            losses=losses,
            ranks=put_ranks(store, unit.ranks_stem, unit.questions, answered.by_index) if unit.questions else None,
        )
        return GateResult(
            rows=len(questions_QD),
            report=report.model_copy(update={"settings": describe_settings(report, deeper, at)}),
            nprobe=tuned.settings.nprobe,
            margin=tuned.settings.margin,
            rescore=tuned.settings.rescore,
            deeper=DeeperSettings(**asdict(deeper.settings)) if deeper else None,
            recall_target=context.config.recall_target,
            curve=tuned.curve,
        )

    def _tune(self, index: ServingIndex, known: KnownQuestions, config: IndexConfig) -> tuple[Tuned, Tuned | None]:
        """Choose settings for as many hits as the recipe's `recall_at`, and others for the deepest rank of the gate."""
        deepest = max(self._gate.at)
        timed = config.latency_ms is not None
        tuned = tune(index, known, config, config.recall_at, timed=timed)
        if deepest <= config.recall_at:
            return tuned, None
        return tuned, tune(index, known, config, deepest, tuned.settings.nprobe, timed=timed)

    def _answered(
        self, unit: GateUnit, search: VectorSearch, questions_QD: Scores, ids_QK: Ids, true_QK: Ids
    ) -> Answered:
        """Return the ranks of answers by the index and by exact search; none without answers.

        The index is searched as for users: `ids_QK` are the first `recall_at` hits, and later hits come from a search
        for more.
        """
        if unit.questions is None:
            return Answered([], [])
        few, depth = unit.context.config.recall_at, max(self._gate.at)
        by_index = answered_ranks(unit.questions, search.segments, ids_QK)
        if depth > few:
            more = answered_ranks(unit.questions, search.segments, search.top(questions_QD, depth)[1])
            later = [None if rank is None else max(rank, few + 1) for rank in more]
            by_index = [rank or other for rank, other in zip(by_index, later, strict=True)]
        return Answered(by_index, answered_ranks(unit.questions, search.segments, true_QK[:, :depth]))


def _check_room(store: Store, record: str, files: Sequence[ObjectRef]) -> None:
    """Check that there is room for the shards that are to be opened."""
    if files:
        # the cache makes room between two shards
        fetched_bytes = max(bytes_to_fetch(store, file) for file in files)
        check_room(store, "gate", record, replace(serving_need(files), cache_bytes=fetched_bytes))
