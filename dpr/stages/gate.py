"""The gate: recall against exact search and accuracy on known questions, measured before a snapshot is published.

Shapes: Q questions, K neighbours.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import numpy.typing as npt

from dpr.engine.room import Need, check_room
from dpr.engine.stage import Stage, Step, Work, recorded
from dpr.errors import GateError
from dpr.evaluate.answers import accuracy
from dpr.evaluate.questions import QuestionSet
from dpr.fingerprint import fingerprint
from dpr.formats import layout
from dpr.formats.manifest import CodebookEntry, GateReport, IndexEntry
from dpr.formats.objects import bytes_to_fetch
from dpr.formats.records import Result
from dpr.index.candidates import rescore
from dpr.index.hardware import Hardware, faiss_threads
from dpr.index.truth import Ids, Scores, exact_topk, recall_at, recall_of_new
from dpr.index.tune import RECALL_AT, Tuned, TunePoint, describe, tune
from dpr.recipe import GateConfig, Recipe
from dpr.run import Run
from dpr.search.hits import Hit
from dpr.search.segment_set import SegmentSet
from dpr.search.vector_search import VectorSearch, open_index
from dpr.stages.find_truth import Truth, find_truth
from dpr.stages.new_sentences import NewSentences, new_sentences
from dpr.stages.question_vectors import read_questions
from dpr.stages.train import IndexContext
from dpr.store import Store, open_store

MAX_TUNING_QUESTIONS = 1_000
"""Questions that settings are chosen on: enough to know the recall of 20 hits each to a fraction of a percent."""
MIN_HALF = 50
LOADED_SHARE = 0.9
"""Memory that an opened shard takes at least, as a share of its file; 0.96 was measured."""


@dataclass(frozen=True)
class GateUnit:
    """The one unit of the stage: an index, and what it is measured against."""

    record: str
    index: IndexEntry
    truth: Truth
    questions: QuestionSet | None
    new: NewSentences | None
    rows: int
    read_bytes: int

    @property
    def need(self) -> Need:
        """What measuring takes: all shards in memory, which share the codebook that each file holds.

        No codebook is larger than the smallest shard.
        """
        sizes = [shard.object.size_bytes for shard in self.index.shards]
        memory_bytes = int(LOADED_SHARE * (sum(sizes) - (len(sizes) - 1) * min(sizes)))
        return Need(memory_bytes=memory_bytes, smaller="set index.memory_gb to what there is")


class GateResult(Result):
    """What the gate found; `rows` are the questions."""

    report: GateReport
    nprobe: int
    rescore: int
    recall_target: float
    curve: list[TunePoint]
    """All settings that tuning tried."""


def gate(run: Run, context: IndexContext, codebook: CodebookEntry, index: IndexEntry) -> tuple[IndexEntry, GateResult]:
    """Measure an index; returns it with the search settings that were chosen, and the measurement."""
    truth = find_truth(run, context, max(RECALL_AT, *run.recipe.gate.at))
    new = new_sentences(run, context, codebook)
    step = Step("gate", partial(MeasureIndex, context, run.recipe.gate, run.executor.hardware()), "trainer")
    work = Work.of(recorded(run.store.url, GateResult, step))
    result = run.result(Stage("gate", [_plan_gate(run, context, index, truth, new)], GateResult, work))
    run.progress.message("search", result.report.settings + _describe_new(result.report))
    return index.model_copy(update={"nprobe": result.nprobe, "rescore": result.rescore}), result


def _plan_gate(run: Run, context: IndexContext, index: IndexEntry, truth: Truth, new: NewSentences | None) -> GateUnit:
    """Return the unit; its record is named by everything that the measurement depends on."""
    questions = run.plan.questions
    aims = {"nprobe", "rescore", "recall_target", "latency_ms", "seed"}
    measure_id = fingerprint(
        {
            "index": index.index_id,
            "segments": context.state,
            "new": [ref.name for ref in new.vectors] if new else None,
            "answers": [list(q.answers) for q in questions.questions] if questions else None,
            "gate": run.recipe.gate.model_dump(mode="json", include={"answers", "at"}),
            "aims": context.config.model_dump(mode="json", include=aims),
        }
    )
    record = layout.record(layout.measured(context.encoder_id, truth.questions_id, measure_id))
    return GateUnit(record, index, truth, questions, new, len(truth.ids_QK), index.size_bytes)


def _describe_new(report: GateReport) -> str:
    if report.new_recall is None:
        return ""
    return f"; recall@{RECALL_AT} of new passages is {report.new_recall:.4f}, asked for by {report.new_asked} sentences"


class MeasureIndex:
    """Tunes the search settings on the gate's questions and measures recall and accuracy."""

    def __init__(self, context: IndexContext, gate: GateConfig, hardware: Hardware) -> None:
        self._context, self._gate, self._hardware = context, gate, hardware

    def __call__(self, unit: GateUnit) -> GateResult:
        context, truth = self._context, unit.truth
        store = open_store(context.store_url)
        # the cache makes room between two of them
        fetched_bytes = max(bytes_to_fetch(store, shard.object) for shard in unit.index.shards)
        check_room(store, "gate", unit.record, replace(unit.need, cache_bytes=fetched_bytes))
        questions_QD = read_questions(store, truth.vectors)
        segments = SegmentSet.open(store, context.segments, context.deletions, verify=False)
        tuning, held_out = split_questions(len(questions_QD), context.config.seed)
        with faiss_threads(self._hardware.threads):
            index = open_index(store, unit.index, segments)
            tuned = tune(index, questions_QD[tuning], truth.ids_QK[tuning], context.config)
            search = VectorSearch(index, tuned.settings, segments)
            found_QK = search.top(questions_QD[held_out], RECALL_AT)[1]
            recall = recall_at(found_QK, truth.ids_QK[held_out], RECALL_AT)
            new_recall = self._new_recall(unit.new, store, search) if unit.new else None
            report = self._report(unit, tuned, (recall, new_recall), (len(tuning), len(held_out)))
            if unit.questions is not None:
                depth = max(self._gate.at)
                found = search.top(questions_QD, depth)
                exact = (truth.scores_QK[:, :depth], truth.ids_QK[:, :depth])
                report = report.model_copy(
                    update={
                        "accuracy_index": _accuracy(unit.questions, segments, found, self._gate.at),
                        "accuracy_exact": _accuracy(unit.questions, segments, exact, self._gate.at),
                    }
                )
        return GateResult(
            rows=len(questions_QD),
            report=report,
            nprobe=tuned.settings.nprobe,
            rescore=tuned.settings.rescore,
            recall_target=context.config.recall_target,
            curve=tuned.curve,
        )

    def _new_recall(self, new: NewSentences, store: Store, search: VectorSearch) -> float | None:
        """Return the recall of passages that are new, which alone are compared with the questions."""
        questions_QD = new.read(store)
        _, found_QK = search.top(questions_QD, RECALL_AT)
        found = rescore(questions_QD, found_QK, search.segments.fetching(found_QK), RECALL_AT)
        return recall_of_new(found, exact_topk(questions_QD, search.segments.live_blocks(new.segments), RECALL_AT))

    def _report(
        self, unit: GateUnit, tuned: Tuned, recalls: tuple[float, float | None], counts: tuple[int, int]
    ) -> GateReport:
        recall, new_recall = recalls
        return GateReport(
            questions=len(unit.truth.ids_QK),
            question_kind="passages" if unit.questions is None else "questions",
            questions_id=unit.truth.questions_id,
            recall=recall,
            measured_on=counts[1],
            tuned_recall=tuned.recall,
            tuned_on=counts[0],
            new_recall=new_recall,
            new_asked=unit.new.asked if unit.new else 0,
            meets_recall_target=tuned.meets_target,
            predicted_ms=round(tuned.predicted_ms, 6),
            meets_latency=tuned.meets_latency,
            settings=describe(tuned, self._context.config),
        )


def _accuracy(
    questions: QuestionSet, segments: SegmentSet, found: tuple[Scores, Ids], at: Sequence[int]
) -> dict[str, float]:
    """Rank → share of questions answered within it. Only the column that decides is read, each part of it once."""
    scores_QK, ids_QK = found
    there_QK = ids_QK >= 0
    by_text = questions.answers == "strings"
    values = iter(segments.column("text" if by_text else "id", ids_QK[there_QK]))
    hits = []
    for scores_K, there_K in zip(scores_QK, there_QK, strict=True):
        ranked = enumerate(scores_K[there_K].tolist(), 1)
        hits.append([_hit(rank, score, next(values), by_text=by_text) for rank, score in ranked])
    return {str(k): share for k, share in accuracy(questions, hits, at).items()}


def _hit(rank: int, score: float, value: str, *, by_text: bool) -> Hit:
    return Hit(rank, score, "" if by_text else value, "", value if by_text else "")


def split_questions(questions: int, seed: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Return which questions settings are chosen on, and which they are then measured on: halves, drawn by the seed.

    At most MAX_TUNING_QUESTIONS are tuned on, the rest is measured on. With fewer than MIN_HALF in a half, chance would
    choose and measure, so then all questions serve both.
    """
    if questions < 2 * MIN_HALF:
        return np.arange(questions), np.arange(questions)
    order = np.random.default_rng(seed).permutation(questions)
    tuned = min(questions // 2, MAX_TUNING_QUESTIONS)
    return np.sort(order[:tuned]), np.sort(order[tuned:])


def check_gate(recipe: Recipe, result: GateResult) -> None:
    """Raise GateError, with measured and demanded, unless the report reaches what the recipe demands."""
    gate, report = recipe.gate, result.report
    if report.recall < gate.min_recall:
        raise GateError(
            f"recall@{RECALL_AT} of the index is {report.recall:.4f}, the recipe demands {gate.min_recall} "
            f"(gate.min_recall); nothing was published: {_advice(recipe, result)}, or lower the demand"
        )
    if report.new_recall is not None and report.new_recall < gate.min_recall:
        raise GateError(
            f"recall@{RECALL_AT} of the passages that are new is {report.new_recall:.4f}, the recipe demands "
            f"{gate.min_recall} (gate.min_recall); nothing was published: set index.retrain to always for a night, so "
            "that the index learns what is new, or lower the demand"
        )
    for k, minimum in sorted(gate.min_accuracy.items()):
        reached = report.accuracy_index.get(str(k))
        if reached is None:
            raise GateError(f"gate.min_accuracy demands rank {k}, which is not among gate.at {gate.at}; add it there")
        if reached < minimum:
            raise GateError(
                f"top-{k} accuracy is {reached:.4f}, the recipe demands {minimum} (gate.min_accuracy); nothing was "
                "published: look at the corpus and the encoder, or lower the demand"
            )


def _advice(recipe: Recipe, result: GateResult) -> str:
    """Return which field of the recipe limits the recall, and which settings reached more."""
    if result.report.meets_recall_target:
        return f"it was tuned to index.recall_target {result.recall_target:g}, so raise that"
    best = max(result.curve, key=lambda point: point.recall)
    setting = f"nprobe {best.nprobe} with rescore {best.rescore} reaches {best.recall:.4f}"
    if best.recall >= recipe.gate.min_recall and recipe.index.latency_ms is not None:
        return f"{setting} at a predicted {best.predicted_ms:.3g} ms, so raise index.latency_ms"
    fixed = [f"index.{name}" for name in ("nprobe", "rescore") if getattr(recipe.index, name) is not None]
    if fixed:
        advice = f"leave {' and '.join(fixed)} to the gate"
    elif recipe.index.latency_ms is not None:
        advice = "raise index.latency_ms"
    else:
        advice = "choose a larger index (index.factory)"
    return f"{setting}, the most of all that was measured, so {advice}"
