"""The questions stage: vectors of the recipe's questions, or of sentences of passages that stand in for them.

A sentence needs as many inverted lists as a question about the passage does; a passage itself needs half of them
(measured, docs/log.md). Passages are drawn once and kept while at least half of them live where they did; so results
are kept, too.

Shapes: Q questions, D dimensions.
"""

from collections.abc import Iterator, Sequence
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
    from dpr.encoder.encode import QuestionEncoder

STAND_INS = 200
"""Passages drawn where the recipe names no questions: enough to tune by, no measure of accuracy."""
MIN_LIVING_STAND_INS = 0.5
"""Others are drawn if a smaller share of them is still live in the same segments."""


class QuestionVectors(Result):
    """Vectors of a set of questions; `rows` are the questions."""

    vectors: ObjectRef
    drawn: list[tuple[str, int]]
    """SHA-256 of the segment, and row, of each passage that gave a sentence; empty for questions of the recipe."""
    cut: CutTexts = CutTexts()
    """What the questions lost to the token limit."""


@dataclass(frozen=True)
class QuestionUnit:
    """Questions to encode, or rows to take a sentence of."""

    record: str
    stem: str
    texts: tuple[str, ...]
    drawn: tuple[tuple[SegmentEntry, int], ...]
    read_bytes: int = 0

    @property
    def rows(self) -> int:
        return len(self.texts) + len(self.drawn)


def question_vectors(run: Run, context: IndexContext) -> tuple[str, QuestionVectors]:
    """Return an id for the questions, and their vectors: those of the recipe, or of sentences that stand in."""
    if (kept := kept_stand_ins(run, context)) is not None:
        run.executor.release("questions")
        return kept
    questions_id, stage = questions_stage(run, context)
    return questions_id, run.result(stage)


def questions_stage(run: Run, context: IndexContext) -> tuple[str, Stage[QuestionUnit, QuestionVectors]]:
    """Return an id for the questions, and the stage of one unit that encodes them."""
    texts: tuple[str, ...] = ()
    drawn: tuple[tuple[SegmentEntry, int], ...] = ()
    if run.plan.questions is not None:
        texts = tuple(run.plan.questions.texts)
        questions_id = fingerprint([run.plan.questions.gate_id, run.spec.config.precision])
    else:
        drawn = draw_stand_ins(context, read_deletions(run.store, context.deletions))
        rows = [[entry.object.sha256, str(row)] for entry, row in drawn]
        questions_id = fingerprint([rows, str(context.config.seed), run.spec.config.precision])
    stem = layout.questions(run.spec.encoder_id, questions_id)
    unit = QuestionUnit(layout.record(stem), stem, texts, drawn)
    return questions_id, Stage("questions", [unit], QuestionVectors, questions_work(run))


def questions_work(run: Run) -> Work[QuestionUnit, Done[QuestionVectors]]:
    """Return the work of the stage, which is known before its unit is: the encoder loads meanwhile."""
    make = partial(EncodeQuestions, run.store.url, run.spec.config, run.recipe.index.seed)
    step: Step[QuestionUnit, QuestionVectors] = Step("questions", make, "asker")
    return Work.of(recorded(run.store.url, QuestionVectors, step))


def kept_stand_ins(run: Run, context: IndexContext) -> tuple[str, QuestionVectors] | None:
    """Return the stand-ins of the base; None if too few of them are still live in the same segments."""
    if run.plan.questions is not None or run.base is None or run.base.body.gate.question_kind != "sentences":
        return None
    questions_id = run.base.body.gate.questions_id
    record = layout.record(layout.questions(run.spec.encoder_id, questions_id))
    found = read_record(run.store, record, QuestionVectors)
    if found is None:
        return None
    deletions = read_deletions(run.store, context.deletions)
    live = {entry.object.sha256: set(deletions.live_rows(entry).tolist()) for entry in _drawn_from(context, found)}
    living = sum(row in live.get(sha256, ()) for sha256, row in found.drawn)
    return (questions_id, found) if living >= MIN_LIVING_STAND_INS * len(found.drawn) else None


def _drawn_from(context: IndexContext, found: QuestionVectors) -> Iterator[SegmentEntry]:
    segments = {sha256 for sha256, _ in found.drawn}
    return (entry for entry in context.segments if entry.object.sha256 in segments)


def draw_stand_ins(context: IndexContext, deletions: DeletionSet) -> tuple[tuple[SegmentEntry, int], ...]:
    """Draw passages uniformly from all live rows."""
    ranks = sample_rows([e.live_rows for e in context.segments], min(STAND_INS, context.rows), context.config.seed)
    drawn = [
        (entry, int(row))
        for entry, ranks_n in zip(context.segments, ranks, strict=True)
        if len(ranks_n)
        for row in deletions.live_rows(entry)[ranks_n]
    ]
    return tuple(drawn)


class EncodeQuestions:
    """Encodes questions, or sentences of the passages that were drawn."""

    def __init__(self, store_url: str, encoder: EncoderConfig, seed: int) -> None:
        self._store, self._seed, self._encoder = open_store(store_url), seed, question_encoder(encoder)

    def __call__(self, unit: QuestionUnit) -> QuestionVectors:
        encoded = self._encoder.encode_counted(unit.texts or self._sentences(unit.drawn))
        return QuestionVectors(
            rows=len(encoded.vectors_QD),
            vectors=put_questions(self._store, unit.stem, encoded.vectors_QD),
            drawn=[(entry.object.sha256, row) for entry, row in unit.drawn],
            cut=encoded.cut,
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
    """Load what encodes questions."""
    from dpr.encoder.encode import QuestionEncoder  # PyTorch, needed only where there are new questions

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
