"""Which candidates of a search answer their question, and the rank of the first that does, in each mode.

Shapes: C candidates of a question, K hits.
"""

from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import numpy.typing as npt

from dpr.evaluate.answers import first_correct_rank
from dpr.evaluate.questions import QuestionSet
from dpr.formats.lexical_entry import FusionSettings, SearchMode
from dpr.lexical.fusion import NOT_FOUND, Candidates
from dpr.search.hits import Hit
from dpr.search.segment_set import SegmentSet

TEXTS_AT_ONCE, IDS_AT_ONCE = 200, 2_000
"""Questions whose candidates' texts or ids are in memory at a time. In a large corpus these lie in nearly all row
groups, so that each time a whole column is read."""
Places = npt.NDArray[np.intp]
"""Indices of candidates, or of questions."""


class Judge:
    """Decides which candidates answer their questions. A candidate is judged when its rank is needed."""

    def __init__(self, questions: QuestionSet, segments: SegmentSet, found: Sequence[Candidates]) -> None:
        self.found = found
        self._questions, self._segments = questions, segments
        self._ids = np.empty(0, np.int64)
        self._values: list[str] = []
        self._is_right: dict[tuple[int, int], bool] = {}

    def reading(self, questions: Places) -> Iterator[int]:
        """Yield the questions; while one is the last that was yielded, `rank` may be called for it."""
        by_id = self._questions.answers == "ids"
        at_once, column = (IDS_AT_ONCE, "id") if by_id else (TEXTS_AT_ONCE, "text")
        for first in range(0, len(questions), at_once):
            some = questions[first : first + at_once].tolist()
            self._ids = np.unique(np.concatenate([self.found[question].ids_C for question in some]))
            self._values = self._segments.column(column, self._ids)
            for question in some:
                self._is_right.clear()
                yield question

    def rank(self, question: int, places: Iterable[int]) -> int | None:
        """Return the rank of the first right candidate among those at `places`, best first; None if none is."""
        return next((rank for rank, place in enumerate(places, 1) if self._answers(question, place)), None)

    def _answers(self, question: int, place: int) -> bool:
        if (question, place) not in self._is_right:
            value = self._values[int(np.searchsorted(self._ids, self.found[question].ids_C[place]))]
            current = self._questions.questions[question]
            rank = first_correct_rank(current, self._questions.answers, [Hit(1, 0.0, value, "", value)])
            self._is_right[question, place] = rank is not None
        return self._is_right[question, place]


def ranked_places(candidates: Candidates, mode: SearchMode, hybrid: FusionSettings, k: int) -> Places:
    """Return the places of the first k candidates in a mode, best first; as a search for k hits ranks them."""
    if mode == "hybrid":
        return candidates.best(hybrid.model_copy(update={"candidates": max(k, hybrid.candidates)}), k)[1]
    ranks_C = candidates.dense_ranks_C if mode == "dense" else candidates.bm25_ranks_C
    order_C: Places = np.argsort(ranks_C, kind="stable")
    return order_C[np.count_nonzero(ranks_C == NOT_FOUND) :][:k]
