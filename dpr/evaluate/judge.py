"""Which of the passages that were found answer their question, and the rank of the first that does, in each mode.

Shapes: C candidates of a question, K hits.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from dpr.evaluate.answers import first_correct_rank
from dpr.evaluate.questions import QuestionSet
from dpr.formats import MISSING
from dpr.formats.lexical_entry import FusionSettings, SearchMode
from dpr.index.truth import Ids
from dpr.lexical.fusion import NOT_FOUND, Candidates
from dpr.search.hits import Hit
from dpr.search.segment_set import SegmentSet

TEXTS_AT_ONCE, IDS_AT_ONCE = 200, 2_000
"""Questions for which texts or ids of passages are in memory at a time. In a large corpus these lie in nearly all row
groups, so that each time a whole column is read."""
Places = npt.NDArray[np.intp]
"""Indices of questions."""


@dataclass(frozen=True)
class FoundInModes:
    """What the modes find for some questions, of which all or some are asked in mode bm25."""

    both: Sequence[Candidates]
    """By question: the candidates of dense and hybrid search."""
    by_words: Mapping[int, Ids]
    """By question: the index ids (K,) that BM25 alone finds, best first, and -1 where there are fewer."""

    def ids(self, question: int) -> Ids:
        """Return the index ids (N,) that any mode finds, ascending."""
        by_words_K = self.by_words.get(question, np.empty(0, np.int64))
        ids_N: Ids = np.union1d(self.both[question].ids_C, by_words_K[by_words_K != MISSING])
        return ids_N

    def ranked(self, question: int, mode: SearchMode, hybrid: FusionSettings, k: int) -> Ids:
        """Return the index ids (K,) of the first k in a mode, best first; as a search for k hits ranks them."""
        if mode == "bm25":
            by_words_K: Ids = self.by_words[question]
            found_K: Ids = by_words_K[by_words_K != MISSING][:k]
            return found_K
        candidates = self.both[question]
        if mode == "hybrid":
            most = max(k, hybrid.candidates)
            return candidates.ids_C[candidates.best(hybrid.model_copy(update={"candidates": most}), k)[1]]
        order_C = np.argsort(candidates.dense_ranks_C, kind="stable")
        found_C = order_C[np.count_nonzero(candidates.dense_ranks_C == NOT_FOUND) :]
        ids_K: Ids = candidates.ids_C[found_C[:k]]
        return ids_K


class Judge:
    """Decides which passages answer their questions. A passage is judged when its rank is needed."""

    def __init__(self, questions: QuestionSet, segments: SegmentSet, found: FoundInModes) -> None:
        self.found = found
        self._questions, self._segments = questions, segments
        self._ids = np.empty(0, np.int64)
        self._values: list[str] = []
        self._is_right: dict[int, bool] = {}
        """By index id, for one question."""

    def reading(self, questions: Places) -> Iterator[int]:
        """Yield the questions; while one is the last that was yielded, `rank` may be called for it."""
        by_id = self._questions.answers == "ids"
        at_once, column = (IDS_AT_ONCE, "id") if by_id else (TEXTS_AT_ONCE, "text")
        for first in range(0, len(questions), at_once):
            some = questions[first : first + at_once].tolist()
            self._ids = np.unique(np.concatenate([self.found.ids(question) for question in some]))
            self._values = self._segments.column(column, self._ids)
            for question in some:
                self._is_right.clear()
                yield question

    def rank(self, question: int, ids_K: Ids) -> int | None:
        """Return the rank of the first of these passages that is right, best first; None if none is."""
        return next((rank for rank, id_ in enumerate(ids_K.tolist(), 1) if self._answers(question, id_)), None)

    def _answers(self, question: int, id_: int) -> bool:
        if id_ not in self._is_right:
            value = self._values[int(np.searchsorted(self._ids, id_))]
            current = self._questions.questions[question]
            rank = first_correct_rank(current, self._questions.answers, [Hit(1, 0.0, value, "", value)])
            self._is_right[id_] = rank is not None
        return self._is_right[id_]
