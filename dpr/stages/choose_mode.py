"""The modes stage: how to fuse vectors and words, and which mode is the default.

With questions of the recipe, the fusion is tuned on one half of them. Then all modes are measured on the other half,
and hybrid becomes the default if it is better than dense search there: if the 95% interval of the paired difference is
above zero. With too few questions for halves, nothing is tuned, and all of them measure.

Shapes: Q questions, S settings.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from dpr.engine.room import check_room
from dpr.engine.stage import Stage, Step, Work, recorded
from dpr.errors import IntegrityError
from dpr.evaluate.judge import FoundInModes, Judge, Places
from dpr.evaluate.questions import QuestionSet
from dpr.evaluate.significance import paired_difference
from dpr.fingerprint import fingerprint
from dpr.formats import layout
from dpr.formats.gate_report import GateReport
from dpr.formats.lexical_entry import FusionSettings, LexicalEntry, ModesReport, SearchMode
from dpr.formats.manifest import IndexEntry
from dpr.formats.records import ObjectRef, Result, read_record
from dpr.index.hardware import Hardware, faiss_threads
from dpr.lexical.fusion import FORMULAS, describe, has_pairs
from dpr.lexical.tune_fusion import CANDIDATES, GAIN_DEPTH, best_settings, gain, settings_to_try
from dpr.run import Run
from dpr.search.hybrid_search import HybridSearch
from dpr.search.lexical_search import LexicalSearch
from dpr.search.segment_set import SegmentSet
from dpr.search.vector_search import VectorSearch, open_index, search_settings
from dpr.stages.gate import serving_need
from dpr.stages.question_halves import MIN_HALF, split_questions
from dpr.stages.question_vectors import QuestionVectors, read_questions
from dpr.stages.train import IndexContext
from dpr.store import open_store
from dpr.store.mapped_files import keeping_more

MODES: tuple[SearchMode, ...] = ("dense", "bm25", "hybrid")


@dataclass(frozen=True)
class ModesUnit:
    """The one unit of the stage: an index of vectors, one of words, and the questions."""

    record: str
    index: IndexEntry
    lexical: LexicalEntry
    questions: QuestionSet
    vectors: ObjectRef
    windows: bool
    """Whether rows may be windows of long texts."""
    rows: int
    read_bytes: int


class ModesResult(Result):
    """The choice and the measurements; `rows` are the questions."""

    hybrid: FusionSettings
    mode: SearchMode
    report: ModesReport


def choose_mode(
    run: Run, context: IndexContext, index: IndexEntry, lexical: LexicalEntry | None, report: GateReport
) -> tuple[LexicalEntry | None, ModesReport | None]:
    """Return the index of words with its chosen settings, and the measurement; None without words or questions."""
    if lexical is None or run.plan.questions is None:
        return lexical, None
    unit = _plan_modes(run, context, (index, lexical, run.plan.questions), report.questions_id)
    step = Step("modes", partial(MeasureModes, context, tuple(run.recipe.gate.at), run.executor.hardware()), "trainer")
    work = Work.of(recorded(run.store.url, ModesResult, step))
    result = run.result(Stage("modes", [unit], ModesResult, work))
    run.progress.message("modes", result.report.choice)
    return lexical.model_copy(update={"hybrid": result.hybrid, "mode": result.mode}), result.report


def _plan_modes(
    run: Run, context: IndexContext, searched: tuple[IndexEntry, LexicalEntry, QuestionSet], questions_id: str
) -> ModesUnit:
    """Return the unit; its record is named by everything that the measurement depends on."""
    index, lexical, questions = searched
    stem = layout.questions(context.encoder_id, questions_id)
    vectors = read_record(run.store, layout.record(stem), QuestionVectors)
    if vectors is None:
        raise IntegrityError(f"record {layout.record(stem)} was deleted while a run was using it; start the run again")
    modes_id = fingerprint(
        {
            "index": index.model_dump(mode="json"),
            "lexical": lexical.model_dump(mode="json"),
            "segments": context.state,
            "answers": [list(question.answers) for question in questions.questions],
            "gate": run.recipe.gate.model_dump(mode="json", include={"answers", "at"}),
            "seed": context.config.seed,
            "fusions": sorted(FORMULAS),
        }
    )
    record = layout.record(layout.modes(context.encoder_id, questions_id, modes_id))
    read_bytes = index.size_bytes + lexical.size_bytes
    windows, rows = run.recipe.corpus.splits_long, len(questions.questions)
    return ModesUnit(record, index, lexical, questions, vectors.vectors, windows, rows, read_bytes)


class MeasureModes:
    """Tunes the fusion, and measures all modes."""

    def __init__(self, context: IndexContext, at: Sequence[int], hardware: Hardware) -> None:
        self._context, self._hardware = context, hardware
        self._at = [k for k in at if k <= max(CANDIDATES)]

    def __call__(self, unit: ModesUnit) -> ModesResult:
        context = self._context
        store = open_store(context.store_url)
        check_room(store, "modes", unit.record, serving_need(unit.index.files))
        segments = SegmentSet.open(store, context.segments, context.deletions, verify=False)
        most = max(*CANDIDATES, unit.lexical.config.candidates or 0)
        with faiss_threads(self._hardware.threads), keeping_more():
            few, deeper = search_settings(unit.index)
            index = open_index(store, unit.index, segments)
            vectors = VectorSearch(index, few, segments, deeper, windows=unit.windows)
            words = LexicalSearch.open(store, unit.lexical, context.segments, context.deletions)
            texts = unit.questions.texts
            questions_QD = read_questions(store, unit.vectors)[: len(texts)]  # sentences may follow them
            both = HybridSearch(vectors, words)
            k1, pairs = unit.lexical.hybrid.k1, has_pairs(unit.lexical.config)
            found = both.candidates(texts, questions_QD, most, k1=k1, pairs=pairs)
            tuning, held_out = split_questions(len(found), context.config.seed)
            _, by_words_QK = both.by_words([texts[question] for question in held_out], max(GAIN_DEPTH, *self._at))
        by_words = dict(zip(held_out.tolist(), by_words_QK, strict=True))
        judge = Judge(unit.questions, segments, FoundInModes(found, by_words))
        hybrid, tuned_on = unit.lexical.hybrid, 0
        if len(found) >= 2 * MIN_HALF:
            hybrid, tuned_on = self._tune(judge, unit.lexical, tuning), len(tuning)
        report = self._report(judge, hybrid, held_out, tuned_on)
        wanted = unit.lexical.config.mode
        chosen: SearchMode = "hybrid" if report.difference_low > 0 else "dense"
        mode = chosen if wanted == "auto" else wanted
        choice = _describe(report, hybrid, mode, is_given=wanted != "auto")
        return ModesResult(
            rows=len(found), hybrid=hybrid, mode=mode, report=report.model_copy(update={"choice": choice})
        )

    def _tune(self, judge: Judge, lexical: LexicalEntry, questions: Places) -> FusionSettings:
        found = judge.found.both
        settings = settings_to_try([found[question] for question in questions], lexical.config)
        gains_QS = np.zeros((len(questions), len(settings)))
        for row, question in enumerate(judge.reading(questions)):
            for place, each in enumerate(settings):
                _, places = found[question].best(each, GAIN_DEPTH)
                gains_QS[row, place] = gain(judge.rank(question, found[question].ids_C[places]))
        return best_settings(settings, gains_QS)

    def _report(self, judge: Judge, hybrid: FusionSettings, questions: Places, tuned_on: int) -> ModesReport:
        """Measure all modes; ranks beyond the settings' candidates are found with as many candidates as ranks."""
        depths = sorted({GAIN_DEPTH, *self._at})
        ranks: dict[SearchMode, dict[int, list[int | None]]] = {mode: {k: [] for k in depths} for mode in MODES}
        for question in judge.reading(questions):
            for mode in MODES:
                for k in depths:
                    ranks[mode][k].append(judge.rank(question, judge.found.ranked(question, mode, hybrid, k)))
        gains = {mode: np.array([gain(rank) for rank in found[GAIN_DEPTH]]) for mode, found in ranks.items()}
        hybrid_gain = paired_difference(gains["hybrid"], gains["dense"])
        return ModesReport(
            tuned_on=tuned_on,
            measured_on=len(questions),
            ndcg={mode: float(gains_Q.mean()) for mode, gains_Q in gains.items()},
            accuracy={
                mode: {str(k): sum(rank is not None for rank in found[k]) / len(questions) for k in self._at}
                for mode, found in ranks.items()
            },
            difference=hybrid_gain.mean,
            difference_low=hybrid_gain.low,
            difference_high=hybrid_gain.high,
            choice="",
        )


def _describe(report: ModesReport, hybrid: FusionSettings, mode: SearchMode, *, is_given: bool) -> str:
    """Return the choice and the measurements in one sentence."""
    gains = ", ".join(f"{name} {value:.4f}" for name, value in report.ndcg.items())
    better = "hybrid is better" if mode == "hybrid" else "hybrid is not clearly better"
    why = "the recipe says so" if is_given else better
    interval = f"{report.difference:+.4f}, 95% interval {report.difference_low:+.4f} to {report.difference_high:+.4f}"
    return (
        f"{mode} is the default, since {why}: nDCG@{GAIN_DEPTH} {gains}; hybrid against dense {interval}; hybrid is "
        f"{describe(hybrid)}"
    )
