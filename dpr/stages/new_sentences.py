"""The sentences stage: sentences of passages that were added since the codebook was trained, as questions about them.

Those of a segment are drawn and encoded once. The gate measures with them how well new passages are found.

Shapes: Q questions, D dimensions.
"""

from dataclasses import dataclass
from functools import partial

import numpy as np

from dpr.engine.stage import Done, Stage, Step, Work, recorded
from dpr.fingerprint import fingerprint
from dpr.formats import layout
from dpr.formats.deletions import read_deletions
from dpr.formats.manifest import CodebookEntry, SegmentEntry
from dpr.formats.records import ObjectRef, Result
from dpr.index.sample import sample_rows
from dpr.index.truth import Scores
from dpr.recipe import EncoderConfig
from dpr.run import Run
from dpr.stages.question_vectors import put_questions, question_encoder, read_questions, sentences_of
from dpr.stages.train import IndexContext
from dpr.store import Store, open_store

OF_A_SEGMENT, OF_ALL = 16, 64
"""Sentences drawn from a segment, and sentences asked in all, from the newest segments."""


class SentenceVectors(Result):
    """Vectors of sentences of one segment; `rows` are the sentences."""

    vectors: ObjectRef


@dataclass(frozen=True)
class SentencesUnit:
    """A segment, and the rows to take a sentence of."""

    record: str
    stem: str
    number: int
    """The segment's number in the snapshot."""
    segment: ObjectRef
    drawn: tuple[int, ...]
    read_bytes: int = 0

    @property
    def rows(self) -> int:
        return len(self.drawn)


@dataclass(frozen=True)
class NewSentences:
    """Sentences of passages that were added since the codebook was trained."""

    segments: tuple[int, ...]
    """Numbers of the segments of these passages."""
    vectors: tuple[ObjectRef, ...]

    def read(self, store: Store) -> Scores:
        """Return the vectors (Q, D) float32."""
        return np.concatenate([read_questions(store, ref) for ref in self.vectors])


def new_sentences(run: Run, context: IndexContext, codebook: CodebookEntry) -> NewSentences | None:
    """Encode sentences of the newest segments since the codebook was trained; None if there are none."""
    stage = sentences_stage(run, context, codebook)
    if not stage.units:
        run.executor.release(stage.name)
        return None
    results = run.results(stage)
    return NewSentences(tuple(unit.number for unit in stage.units), tuple(result.vectors for result in results))


def sentences_stage(run: Run, context: IndexContext, codebook: CodebookEntry) -> Stage[SentencesUnit, SentenceVectors]:
    """Plan the stage: a unit for each of the newest segments since the codebook was trained."""
    later = [entry for entry in context.segments if entry.number > codebook.last_segment and entry.live_rows]
    newest = sorted(later, key=lambda entry: -entry.number)[: OF_ALL // OF_A_SEGMENT]
    units = [_unit(run, context, entry) for entry in newest]
    return Stage("sentences", units, SentenceVectors, sentences_work(run))


def sentences_work(run: Run) -> Work[SentencesUnit, Done[SentenceVectors]]:
    """Return the work of the stage, which is known before its units are: the encoder loads meanwhile."""
    make = partial(EncodeSentences, run.store.url, run.spec.config, run.recipe.index.seed)
    step: Step[SentencesUnit, SentenceVectors] = Step("sentences", make, "asker")
    return Work.of(recorded(run.store.url, SentenceVectors, step))


def _unit(run: Run, context: IndexContext, entry: SegmentEntry) -> SentencesUnit:
    """Return the unit of a segment: rows are drawn from those that live at its first use."""
    how = fingerprint([run.spec.config.precision, str(context.config.seed)])
    stem = layout.sentences(run.spec.encoder_id, entry.segment_id, how)
    live = read_deletions(run.store, context.deletions).live_rows(entry)
    (ranks,) = sample_rows([len(live)], OF_A_SEGMENT, context.config.seed)
    return SentencesUnit(layout.record(stem), stem, entry.number, entry.object, tuple(live[ranks].tolist()))


class EncodeSentences:
    """Takes one sentence of each drawn passage of a segment, and encodes it as a question."""

    def __init__(self, store_url: str, encoder: EncoderConfig, seed: int) -> None:
        self._store, self._seed, self._encoder = open_store(store_url), seed, question_encoder(encoder)

    def __call__(self, unit: SentencesUnit) -> SentenceVectors:
        texts = sentences_of(self._store, unit.segment, unit.drawn, self._seed)
        vectors_QD = self._encoder.encode_counted(texts).vectors_QD
        return SentenceVectors(rows=len(vectors_QD), vectors=put_questions(self._store, unit.stem, vectors_QD))
