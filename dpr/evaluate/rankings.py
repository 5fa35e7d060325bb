"""The answers of two or more searches to the same questions, how good they are, and where they differ.

Shapes: Q questions, M metrics.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from dpr.errors import RecipeError
from dpr.evaluate.metrics import Judged, Metrics, Values, judge
from dpr.evaluate.questions import QuestionSet
from dpr.evaluate.significance import Difference, Interval, mean_intervals, paired_differences
from dpr.evaluate.trec_runs import read_run
from dpr.formats.lexical_entry import SearchMode
from dpr.plurals import counted

if TYPE_CHECKING:
    from dpr.search.rerank import Reranker
    from dpr.search.retrieve import Retriever

QUESTIONS_AT_ONCE = 64
"""Questions whose hits are in memory with their texts."""


@dataclass(frozen=True)
class Ranking:
    """The answers of one snapshot in one mode, or of one run file, to all questions."""

    name: str
    metrics: Metrics
    judged: tuple[Judged, ...]
    values_QM: Values

    @cached_property
    def intervals(self) -> dict[str, Interval]:
        """Mean and 95% interval of each metric."""
        return dict(zip(self.metrics.names, mean_intervals(self.values_QM), strict=True))


@dataclass(frozen=True)
class RankedBy:
    """Ranks the passages of a question."""

    mode: SearchMode
    exact: bool = False
    """Whether all vectors are compared instead of using the index."""
    reranker: "Reranker | None" = None

    @property
    def name(self) -> str:
        """Return the name of the ranking."""
        return self.mode if self.reranker is None else f"{self.mode}-reranked"


def search_all(retriever: "Retriever", questions: QuestionSet, metrics: Metrics, by: RankedBy) -> Ranking:
    """Ask a snapshot all questions.

    Raises RecipeError if it cannot be searched in this mode, or if fewer hits are re-ranked than the metrics need.
    """
    judged: list[Judged] = []
    depth = by.reranker.top if by.reranker else metrics.depth
    for first in range(0, len(questions.questions), QUESTIONS_AT_ONCE):
        some = QuestionSet(questions.questions[first : first + QUESTIONS_AT_ONCE], questions.answers)
        hits = retriever.search(some.texts, depth, mode=by.mode, exact=by.exact).hits
        judged += judge(some, by.reranker.rerank(some.texts, hits, metrics.depth) if by.reranker else hits)
    return Ranking(by.name, metrics, tuple(judged), metrics.values(questions.questions, judged))


def read_ranking(path: str, questions: QuestionSet, metrics: Metrics) -> tuple[Ranking, list[str]]:
    """Return a TREC run as a ranking, and notes on questions that only it or only the question set has.

    Raises RecipeError if answers are texts, since a run has none, or if it answers none of the questions.
    """
    if questions.answers != "ids":
        raise RecipeError(f"run {path} has no texts, so answers cannot be {questions.answers}; give qrels, or ids")
    found = read_run(path)
    if not found:
        raise RecipeError(f"run {path} is empty; name one that answers the questions")
    names = {question.id for question in questions.questions}
    if not names & found.keys():
        raise RecipeError(
            f"run {path} answers none of the {len(names):,} questions; its first is {next(iter(found))!r}, and "
            f"the first question is {questions.questions[0].id!r}"
        )
    notes = []
    if absent := len(names - found.keys()):
        notes.append(f"{absent:,} of {len(names):,} questions have no answer in run {path}, and count as not answered")
    if others := len(found.keys() - names):
        notes.append(f"{counted(others, 'question')} of run {path} left out, not among the questions")
    judged = tuple(judge(questions, [found.get(each.id, [])[: metrics.depth] for each in questions.questions]))
    return Ranking(path, metrics, judged, metrics.values(questions.questions, judged)), notes


@dataclass(frozen=True)
class Comparison:
    """Two rankings of the same questions; a question is won if `b` answers it better than `a`."""

    a: Ranking
    b: Ranking

    @cached_property
    def differences(self) -> dict[str, Difference]:
        """`b` minus `a`, by metric."""
        found = paired_differences(self.b.values_QM, self.a.values_QM)
        return dict(zip(self.a.metrics.names, found, strict=True))

    def most(self, count: int, *, won: bool) -> list[int]:
        """Return the places of the questions that were won or lost most, the most first."""
        column = self.a.metrics.names.index(self.a.metrics.chief)
        gained_Q = self.b.values_QM[:, column] - self.a.values_QM[:, column]
        order_Q = np.argsort(-gained_Q if won else gained_Q, kind="stable")[:count]
        return [place for place in order_Q.tolist() if (gained_Q[place] > 0 if won else gained_Q[place] < 0)]


def unanswered(rankings: Sequence[Ranking]) -> list[int]:
    """Return the places of the questions that no ranking has a right passage for."""
    return [
        place
        for place, found in enumerate(zip(*(each.judged for each in rankings), strict=True))
        if all(judged.rank is None for judged in found)
    ]
