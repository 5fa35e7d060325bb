"""How well one search answered, by question: the metrics of the field, by ir-measures (trec_eval's code underneath).

accuracy@k is the share of questions with a right passage among the first k (paper, section 5). The others are
trec_eval's: RR@10 (its mean is MRR), nDCG@10, R@k (recall) and AP@k (its mean is MAP). nDCG, recall and AP count all
right passages, so they need answers that name passages; where answers are strings, only the others are calculated.

Shapes: Q questions, M metrics.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import ir_measures
import numpy as np
import numpy.typing as npt
from ir_measures import AP, RR, R, nDCG

from dpr.evaluate.answers import document_of, is_right
from dpr.evaluate.questions import AnswerKind, Question, QuestionSet
from dpr.search.hits import Hit

CUT = 10
"""Hits that nDCG and the reciprocal rank consider."""
SHOWN_HITS = 3
"""Hits of a question that are kept with their texts, to be shown as examples."""
ACCURACY = "accuracy"
Values = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Judged:
    """The hits of one question, best first, and which of them are right."""

    ids: tuple[str, ...]
    scores: tuple[float, ...]
    right: tuple[bool, ...]
    shown: tuple[Hit, ...]
    """The first hits."""

    @property
    def rank(self) -> int | None:
        """Rank of the first right hit; None: there is none."""
        return self.right.index(True) + 1 if True in self.right else None


@dataclass(frozen=True)
class Metrics:
    """The metrics that are calculated."""

    at: tuple[int, ...]
    """Ranks of accuracy, ascending; the last is also that of recall and AP."""
    answers: AnswerKind

    @property
    def depth(self) -> int:
        """Hits that a search must return."""
        return max(CUT, *self.at)

    @property
    def names(self) -> tuple[str, ...]:
        return (*(f"{ACCURACY}@{k}" for k in self.at), *map(str, self._measures))

    @property
    def chief(self) -> str:
        """The metric by which questions are won and lost."""
        return self.names[len(self.at)]

    @property
    def _measures(self) -> list[ir_measures.Measure]:
        last = self.at[-1]
        return [nDCG @ CUT, RR @ CUT, R @ last, AP @ last] if self.answers == "ids" else [RR @ CUT]

    def values(self, questions: Sequence[Question], judged: Sequence[Judged]) -> Values:
        """Return the values (Q, M) of the answers to some questions."""
        measures = self._measures
        values_QM = np.zeros((len(questions), len(self.at) + len(measures)))
        ranks = [each.rank for each in judged]
        for column, k in enumerate(self.at):
            values_QM[:, column] = [rank is not None and rank <= k for rank in ranks]
        qrels, run = {}, {}
        for number, (question, each) in enumerate(zip(questions, judged, strict=True)):
            qrels[str(number)], run[str(number)] = self._judgements(question, each)
        columns = {measure: len(self.at) + column for column, measure in enumerate(measures)}
        for value in ir_measures.iter_calc(measures, qrels, run):
            values_QM[int(value.query_id), columns[value.measure]] = value.value
        return values_QM

    def _judgements(self, question: Question, judged: Judged) -> tuple[dict[str, int], dict[str, float]]:
        """Return the judgements and the ranking of a question as ir-measures wants them.

        The library orders by score, and equal scores by id. So the score here is the rank, counted from the bottom.
        """
        if self.answers == "ids":
            relevant = dict(question.relevance)
            ranked = list(dict.fromkeys(_judged_name(name, relevant) for name in judged.ids))
        else:
            ranked = [str(place) for place in range(len(judged.ids))]
            relevant = {name: int(right) for name, right in zip(ranked, judged.right, strict=True)}
        # the library leaves out questions without a judgement, and without a hit
        relevant, ranked = relevant or {"": 0}, ranked or ["no hit"]
        return relevant, {name: float(len(ranked) - place) for place, name in enumerate(ranked)}


def _judged_name(passage_id: str, relevant: Mapping[str, int]) -> str:
    """Return the document of a passage where the document was judged; it counts once, by its first passage."""
    document = document_of(passage_id)
    return document if passage_id not in relevant and document in relevant else passage_id


def judge(questions: QuestionSet, hits: Sequence[Sequence[Hit]]) -> Iterator[Judged]:
    """Yield which hits of each question are right."""
    for question, found in zip(questions.questions, hits, strict=True):
        yield Judged(
            tuple(hit.id for hit in found),
            tuple(hit.score for hit in found),
            tuple(is_right(question, questions.answers, hit) for hit in found),
            tuple(found[:SHOWN_HITS]),
        )
