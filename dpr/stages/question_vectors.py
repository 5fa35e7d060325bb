"""The questions stage: vectors of the recipe's questions, and of sentences of passages.

Sentences stand in where there are no questions. They are added to the questions if these are too few to measure how
much the index loses (`gate.max_loss`).

A sentence needs as many inverted lists as a question about the passage does; a passage itself needs half of them
(measured, docs/log.md). Passages are drawn once and kept while at least half of them are live where they were; so
results are kept, too.

Shapes: Q questions, D dimensions.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from dpr.encoder.compute import Compute
from dpr.encoder.spec import resolve
from dpr.engine.stage import Done, Stage, Step, Work, recorded
from dpr.evaluate.sentences import draw_sentence
from dpr.fingerprint import fingerprint
from dpr.formats import layout
from dpr.formats.cut_texts import CutTexts
from dpr.formats.deletions import DeletionSet, read_deletions
from dpr.formats.manifest import SegmentEntry
from dpr.formats.objects import fetch_object, open_parts, put_object
from dpr.formats.records import ObjectRef, Result, read_record
from dpr.formats.segment import read_rows
from dpr.index.sample import sample_rows
from dpr.index.truth import Scores
from dpr.recipe import EncoderConfig
from dpr.run import Run
from dpr.stages.train import IndexContext
from dpr.store import Store, open_store
from dpr.store.temporary import temporary_folder

if TYPE_CHECKING:
    from dpr.encoder.question_encoder import QuestionEncoder

STAND_INS = 200
"""Passages drawn where the recipe names no questions: enough to tune by, no measure of accuracy."""
TELLING_TIMES = 8
"""Questions needed to decide whether a share is lost, as a multiple of its reciprocal: if three of them are lost, the
share is smaller with a confidence of 95%, and if fourteen are, it is larger."""
MIN_LIVING_STAND_INS = 0.5
"""New passages are drawn if a smaller share than this is still live in the same segments."""


class QuestionVectors(Result):
    """Vectors of a set of questions; `rows` are the questions."""

    vectors: ObjectRef
    drawn: list[tuple[str, int]]
    """SHA-256 of the segment, and row, of each passage that gave a sentence; sentences come behind the questions."""
    beside: str = ""
    """Fingerprint of the questions that they are added to, and of their number; empty: they stand in for questions."""
    cut: CutTexts = CutTexts()
    """Tokens that the questions lost to the token limit."""


@dataclass(frozen=True)
class QuestionUnit:
    """Questions to encode, or rows to take a sentence of."""

    record: str
    stem: str
    texts: tuple[str, ...]
    drawn: tuple[tuple[SegmentEntry, int], ...]
    beside: str
    read_bytes: int = 0

    @property
    def rows(self) -> int:
        return len(self.texts) + len(self.drawn)


def question_vectors(run: Run, context: IndexContext) -> tuple[str, QuestionVectors]:
    """Return an id for the questions, and their vectors: those of the recipe, and of sentences."""
    if (kept := kept_sentences(run, context)) is not None:
        run.executor.release("questions")
        return kept
    questions_id, stage = questions_stage(run, context)
    return questions_id, run.result(stage)


def questions_stage(run: Run, context: IndexContext) -> tuple[str, Stage[QuestionUnit, QuestionVectors]]:
    """Return an id for the questions, and the stage of one unit that encodes them."""
    questions, precision = run.plan.questions, run.spec.config.precision
    texts: tuple[str, ...] = ()
    drawn: tuple[tuple[SegmentEntry, int], ...] = ()
    ids: list[object] = []
    if questions is not None:
        texts, ids = tuple(questions.texts), [questions.gate_id, precision]
    if wanted := wanted_sentences(run):
        drawn = draw_passages(context, read_deletions(run.store, context.deletions), wanted)
        ids += [[[entry.object.sha256, str(row)] for entry, row in drawn], str(context.config.seed), precision]
    questions_id = fingerprint(ids)
    stem = layout.questions(run.spec.encoder_id, questions_id)
    unit = QuestionUnit(layout.record(stem), stem, texts, drawn, _beside(run))
    return questions_id, Stage("questions", [unit], QuestionVectors, questions_work(run))


def questions_work(run: Run) -> Work[QuestionUnit, Done[QuestionVectors]]:
    """Return the work of the stage, which is known before its unit is: the encoder loads meanwhile."""
    make = partial(EncodeQuestions, run.store.url, run.spec.config, run.recipe.index.seed)
    step: Step[QuestionUnit, QuestionVectors] = Step("questions", make, "asker")
    return Work.of(recorded(run.store.url, QuestionVectors, step))


def wanted_sentences(run: Run) -> int:
    """Return the number of sentences: in place of questions, or added to them if they are too few. Pure."""
    questions, max_loss = run.plan.questions, run.recipe.gate.max_loss
    telling = 0 if max_loss is None else math.ceil(TELLING_TIMES / max_loss)
    if questions is None:
        return max(STAND_INS, telling)
    return telling if len(questions.questions) < telling else 0


def _beside(run: Run) -> str:
    """Return a fingerprint of the questions that sentences are added to, and of the number of sentences. Pure."""
    questions, wanted = run.plan.questions, wanted_sentences(run)
    if questions is None and wanted == STAND_INS:
        return ""
    return fingerprint([questions.gate_id if questions else None, wanted, run.spec.config.precision])


def kept_sentences(run: Run, context: IndexContext) -> tuple[str, QuestionVectors] | None:
    """Return the questions and sentences of the base, if they can still be used; otherwise None.

    They cannot if too few sentences are live where they were, or if the recipe's questions have changed.
    """
    if run.base is None or not wanted_sentences(run):
        return None
    questions_id = run.base.body.gate.questions_id
    record = layout.record(layout.questions(run.spec.encoder_id, questions_id))
    found = read_record(run.store, record, QuestionVectors)
    if found is None or not found.drawn or found.beside != _beside(run):
        return None
    deletions = read_deletions(run.store, context.deletions)
    living = sum(live_among(context, deletions, found.drawn))
    return (questions_id, found) if living >= MIN_LIVING_STAND_INS * len(found.drawn) else None


def live_among(context: IndexContext, deletions: DeletionSet, drawn: Sequence[tuple[str, int]]) -> list[bool]:
    """Return which of some rows, each with the SHA-256 of its segment, live in these segments."""
    segments = {sha256 for sha256, _ in drawn}
    of_drawn = (entry for entry in context.segments if entry.object.sha256 in segments)
    dead = {entry.object.sha256: deletions.dead_rows(entry) for entry in of_drawn}
    return [sha256 in dead and row not in dead[sha256] for sha256, row in drawn]


def draw_passages(context: IndexContext, deletions: DeletionSet, wanted: int) -> tuple[tuple[SegmentEntry, int], ...]:
    """Draw passages uniformly from all live rows."""
    ranks = sample_rows([e.live_rows for e in context.segments], min(wanted, context.rows), context.config.seed)
    drawn = [
        (entry, int(row))
        for entry, ranks_n in zip(context.segments, ranks, strict=True)
        if len(ranks_n)
        for row in deletions.live_rows(entry)[ranks_n]
    ]
    return tuple(drawn)


class EncodeQuestions:
    """Encodes questions, and behind them sentences of the passages that were drawn."""

    def __init__(self, store_url: str, encoder: EncoderConfig, seed: int) -> None:
        self._store, self._seed, self._encoder = open_store(store_url), seed, question_encoder(encoder)

    def __call__(self, unit: QuestionUnit) -> QuestionVectors:
        # encoded separately, since in bf16 the vectors of questions depend slightly on the rest of their batch
        groups = [texts for texts in (list(unit.texts), self._sentences(unit.drawn)) if texts]
        encoded = [self._encoder.encode_counted(texts) for texts in groups]
        vectors_QD = np.concatenate([each.vectors_QD for each in encoded])
        return QuestionVectors(
            rows=len(vectors_QD),
            vectors=put_questions(self._store, unit.stem, vectors_QD),
            drawn=[(entry.object.sha256, row) for entry, row in unit.drawn],
            beside=unit.beside,
            cut=CutTexts.total(each.cut for each in encoded),
        )

    def _sentences(self, drawn: Sequence[tuple[SegmentEntry, int]]) -> list[str]:
        found = []
        for entry in dict.fromkeys(entry for entry, _ in drawn):
            rows = [row for other, row in drawn if other == entry]
            found += sentences_of(self._store, entry.object, rows, self._seed)
        return found


def sentences_of(store: Store, segment: ObjectRef, rows: Sequence[int], seed: int) -> list[str]:
    """Return a sentence of each of some passages of a segment; `rows` ascend."""
    texts = read_rows(open_parts(store, segment), ["text"], np.array(rows, np.int64))["text"].to_pylist()
    return [draw_sentence(text, seed + row) for row, text in zip(rows, texts, strict=True)]


def question_encoder(encoder: EncoderConfig) -> "QuestionEncoder":
    """Load the encoder of questions."""
    from dpr.encoder.question_encoder import QuestionEncoder  # needed only where there are new questions

    return QuestionEncoder(resolve(encoder).question, Compute(encoder.precision))


def put_questions(store: Store, stem: str, vectors_QD: Scores) -> ObjectRef:
    """Store question vectors (Q, D) float32 and return their reference."""
    with temporary_folder() as folder:
        path = Path(folder, "vectors.parquet")
        column = pa.FixedSizeListArray.from_arrays(pa.array(vectors_QD.reshape(-1)), vectors_QD.shape[1])
        pq.write_table(pa.table({"embedding": column}), path)
        return put_object(store, stem, path)


def read_questions(store: Store, ref: ObjectRef) -> Scores:
    """Return question vectors (Q, D) float32, verified."""
    return _read_questions(store.url, ref)


@lru_cache(maxsize=1)  # the units of a process share one
def _read_questions(store_url: str, ref: ObjectRef) -> Scores:
    table = pq.read_table(fetch_object(open_store(store_url), ref))
    column = table["embedding"].combine_chunks()
    vectors_QD: Scores = column.flatten().to_numpy().reshape(len(column), -1)
    return vectors_QD
