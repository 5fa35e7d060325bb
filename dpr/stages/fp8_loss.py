"""The fp8 stage: what retrieval loses because passages are encoded in fp8.

Some passages are encoded once more, in bf16, or in fp32 where the processor has no products of bf16. The same questions
are then compared with the stored vectors and with these, exactly. Questions that are too few to show a loss of 0.2
points are joined by sentences of the passages. The figures belong to the encoder: they are measured on the first night,
and again when the recipe's questions change, or the collection has twice the rows.

Shapes: Q questions, N passages, D dimensions, K hits, F figures.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from dpr.encoder.compute import Compute
from dpr.encoder.spec import resolve_same
from dpr.engine.stage import Stage, Step, Work, recorded
from dpr.evaluate.answers import first_correct_rank
from dpr.evaluate.questions import Question, QuestionSet
from dpr.evaluate.sentences import draw_sentence
from dpr.evaluate.significance import MIN_QUESTIONS, Difference, paired_differences
from dpr.fingerprint import fingerprint
from dpr.formats import layout
from dpr.formats.gate_report import Fp8Figure, Fp8Loss, Fp8Report
from dpr.formats.records import ObjectRef, Result
from dpr.formats.stored_vectors import Vectors, as_stored
from dpr.index.hardware import Hardware, faiss_threads
from dpr.index.truth import Ids, Scores, exact_topk
from dpr.lexical.tune_fusion import gain
from dpr.plurals import counted
from dpr.recipe import EncoderConfig
from dpr.run import Run
from dpr.search.hits import Hit
from dpr.stages.find_truth import Truth
from dpr.stages.fp8_sample import NEAR, PASSAGES, Sample, nearest, read_sample, sampled_rows
from dpr.stages.passages_found import WINDOWS_DEEPER
from dpr.stages.question_vectors import question_encoder, read_questions
from dpr.stages.train import IndexContext
from dpr.store import open_store

DEPTH = 20
SENTENCES = 4_000
"""Fewer questions are joined by as many sentences: if a share of 0.2 points is lost, that is 8 of them."""
GROWTH = 2
"""The loss is measured again once the collection has this many times the rows."""
Values = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Fp8Unit:
    """The one unit of the stage: the questions, and the rows that are nearest to them."""

    record: str
    questions_id: str
    questions: QuestionSet | None
    vectors: ObjectRef
    near_n: Ids
    rows: int
    read_bytes: int
    windows: bool
    """Whether rows may be windows of long texts."""


class Fp8Result(Result):
    """The measurement; `rows` are the passages that were encoded again."""

    report: Fp8Report


def fp8_loss(run: Run, context: IndexContext, truth: Truth) -> Fp8Report | None:
    """Return what passages in fp8 lose, measured now or when the base was made; None if they are not in fp8."""
    if not run.spec.passage.fp8_products:
        return None
    unit = plan_fp8(run, context, truth)
    if (kept := _kept(run, context, unit.questions_id)) is not None:
        return kept
    make = partial(MeasureFp8, context, run.spec.config, run.executor.hardware())
    work = Work.of(recorded(run.store.url, Fp8Result, Step("fp8", make, "trainer")))
    report = run.result(Stage("fp8", [unit], Fp8Result, work)).report
    run.progress.message("fp8", report.summary)
    return report


def _kept(run: Run, context: IndexContext, questions_id: str) -> Fp8Report | None:
    """Return the measurement of the base, which has the same encoder id, if it still holds. Pure."""
    report = run.base.body.gate.fp8 if run.base else None
    holds = report is not None and report.questions_id == questions_id and context.rows < GROWTH * report.of_rows
    return report if holds else None


def plan_fp8(run: Run, context: IndexContext, truth: Truth) -> Fp8Unit:
    """Return the unit; its record is named by everything that the measurement depends on. Pure."""
    questions = run.plan.questions
    texts = [[q.text, list(q.answers)] for q in questions.questions] if questions else []
    questions_id = fingerprint([questions.answers if questions else "none", texts])
    windows = run.recipe.corpus.splits_long
    ids: list[object] = [questions_id, context.state, str(context.config.seed), PASSAGES, SENTENCES, windows]
    record = layout.record(layout.fp8_loss(context.encoder_id, truth.questions_id, fingerprint(ids)))
    rows, near_n = min(PASSAGES, context.rows), nearest(truth.ids_QK, NEAR)
    share = rows / max(1, context.rows)
    read_bytes = int(share * sum(entry.object.size_bytes for entry in context.segments))
    return Fp8Unit(record, questions_id, questions, truth.vectors, near_n, rows, read_bytes, windows)


class QuestionGroup(NamedTuple):
    """Questions with their vectors."""

    kind: str
    questions: QuestionSet
    vectors_QD: Scores


class MeasureFp8:
    """Encodes some passages without fp8, and compares what both kinds of vectors answer."""

    def __init__(self, context: IndexContext, encoder: EncoderConfig, hardware: Hardware) -> None:
        from dpr.encoder.encode import PassageEncoder, TowerEncoder  # PyTorch: seconds, and 300 MB

        self._context, self._config, self._hardware = context, encoder, hardware
        tower = replace(resolve_same(encoder, context.encoder_id).passage, fp8_products=())
        compute = Compute("auto", encoder.tokens_per_batch, hardware.threads, packing=encoder.packing)
        network = TowerEncoder(tower, compute)
        self._exact = network.choice.partition(",")[0]
        self._encoder = PassageEncoder(tower, network=network)

    def __call__(self, unit: Fp8Unit) -> Fp8Result:
        context, store = self._context, open_store(self._context.store_url)
        rows_N = sampled_rows(store, context, unit.questions, unit.near_n)
        sample = read_sample(store, context, rows_N)
        # rounded as the stored vectors are, so that arithmetic is the only difference
        exact_ND = as_stored(self._encoder.encode(sample.titles, sample.texts), self._config.store_as)
        losses = []
        with faiss_threads(self._hardware.threads):
            for group in self._groups(unit, sample, read_questions(store, unit.vectors)):
                kinds = (sample.stored_ND, exact_ND)
                fp8_QF, exact_QF = (self._values(group, sample, vectors_ND, unit) for vectors_ND in kinds)
                losses.append(loss_of(group.kind, fp8_QF, exact_QF, context.config.seed))
        report = Fp8Report(
            passages=len(rows_N),
            of_rows=context.rows,
            exact=self._exact,
            questions_id=unit.questions_id,
            losses=losses,
            summary=_summary(losses, len(rows_N), self._exact),
        )
        return Fp8Result(rows=len(rows_N), report=report)

    def _groups(self, unit: Fp8Unit, sample: Sample, questions_QD: Scores) -> list[QuestionGroup]:
        """Return the recipe's questions, and sentences of passages if these are few."""
        groups = []
        if unit.questions is not None:
            groups.append(QuestionGroup("questions", unit.questions, questions_QD[: len(unit.questions.questions)]))
        if not groups or len(groups[0].questions.questions) < SENTENCES:
            groups.append(self._sentences(sample))
        return groups

    def _sentences(self, sample: Sample) -> QuestionGroup:
        seed, passages = self._context.config.seed, len(sample.ids)
        drawn = np.random.default_rng(seed).choice(passages, min(SENTENCES, passages), replace=False)
        questions = tuple(Question(draw_sentence(sample.texts[row], seed + row), (sample.ids[row],)) for row in drawn)
        vectors_QD = question_encoder(self._config).encode([question.text for question in questions])
        return QuestionGroup("sentences", QuestionSet(questions, "ids"), vectors_QD)

    def _values(self, group: QuestionGroup, sample: Sample, vectors_ND: Vectors, unit: Fp8Unit) -> Values:
        """Return the figures (Q, F) of each question, if these vectors are searched."""
        usable = np.flatnonzero(np.isfinite(vectors_ND).all(axis=1))
        depth = DEPTH * (WINDOWS_DEEPER if unit.windows else 1)
        _, rows_QK = exact_topk(group.vectors_QD, [(usable, vectors_ND[usable])], depth, self._hardware)
        return figures(group.questions, sample, rows_QK)


def figures(questions: QuestionSet, sample: Sample, rows_QK: Ids) -> Values:
    """Return (Q, F) whether the first 20 passages answer each question, and its nDCG@10, from rows of the sample."""
    values_QF = np.zeros((len(rows_QK), 2))
    for place, (question, rows_K) in enumerate(zip(questions.questions, rows_QK.tolist(), strict=True)):
        firsts: dict[str, int] = {}  # of the windows of a text only the best counts
        for row in rows_K:
            if row >= 0:
                firsts.setdefault(sample.ids[row], row)
        some = list(firsts.items())[:DEPTH]
        hits = [Hit(rank, 0.0, id_, "", sample.texts[row]) for rank, (id_, row) in enumerate(some, 1)]
        rank = first_correct_rank(question, questions.answers, hits)
        values_QF[place] = rank is not None, gain(rank)
    return values_QF


def loss_of(kind: str, fp8_QF: Values, exact_QF: Values, seed: int) -> Fp8Loss:
    """Compare the figures of the same questions."""
    found = paired_differences(fp8_QF, exact_QF, seed)
    accuracy, ndcg = (_figure(*each) for each in zip(exact_QF.T, fp8_QF.T, found, strict=True))
    return Fp8Loss(kind=kind, questions=len(fp8_QF), accuracy=accuracy, ndcg=ndcg)


def _figure(exact_Q: Values, fp8_Q: Values, found: Difference) -> Fp8Figure:
    return Fp8Figure(
        exact=float(exact_Q.mean()),
        fp8=float(fp8_Q.mean()),
        low=found.low,
        high=found.high,
        p_value=found.p_value,
        won=found.won,
        lost=found.lost,
    )


def _summary(losses: Sequence[Fp8Loss], passages: int, exact: str) -> str:
    figures = "; ".join(describe_fp8_loss(loss, exact) for loss in losses)
    return f"{figures}; measured on {counted(passages, 'passage')} that were encoded in both"


def describe_fp8_loss(loss: Fp8Loss, exact: str) -> str:
    """Return the figures of some questions as part of a sentence; fp8 is compared with the arithmetic `exact`."""
    both = f"{_points(loss.accuracy, f'top-{DEPTH} accuracy')} and {_points(loss.ndcg, 'nDCG@10')}"
    few = "" if loss.questions >= MIN_QUESTIONS else f", too few to judge by (minimum {MIN_QUESTIONS})"
    return f"compared with {exact}, fp8 loses {both} on {loss.questions:,} {loss.kind}{few}"


def _points(figure: Fp8Figure, name: str) -> str:
    lost, least, most = (100 * share for share in (figure.exact - figure.fp8, 0.0 - figure.high, 0.0 - figure.low))
    chance = f"{figure.lost:,} lost, {figure.won:,} won, p {figure.p_value:.4f}"
    return f"{lost:.2f} points of {name} (95% interval {least:.2f} to {most:.2f}; {chance})"
