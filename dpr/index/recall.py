"""Recall against exact search, where it does not matter which of several equally near passages are found.

A text that occurs a thousand times in a corpus has a thousand equal vectors. Any k of them are the k nearest of a
question near it. So a passage with the score of the last true neighbour counts as that neighbour.

Shapes: Q questions, K neighbours, C candidates, D dimensions.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from dpr.formats import MISSING
from dpr.index.candidates import Fetch, exact_scores
from dpr.index.truth import Ids, Scores, recalls_at


@dataclass(frozen=True)
class KnownQuestions:
    """Questions whose exact neighbours are known."""

    vectors_QD: Scores
    scores_QK: Scores
    """Scores of the exact neighbours, best first."""
    ids_QK: Ids
    fetching: Callable[[Ids], Fetch]
    """Returns a function that reads the stored vectors of some ids."""

    def some(self, rows: npt.NDArray[np.int64]) -> "KnownQuestions":
        """Return some of the questions."""
        return replace(self, vectors_QD=self.vectors_QD[rows], scores_QK=self.scores_QK[rows], ids_QK=self.ids_QK[rows])

    def recalls(self, found_ids_QC: Ids, k: int, depths: Sequence[int]) -> list[float]:
        """Return, for each depth, the share of the k nearest among the first `depth` found; 1.0 if there are none."""
        return recalls_at(self._settled(found_ids_QC, k), self.ids_QK[:, :k], depths)

    def _settled(self, found_ids_QC: Ids, k: int) -> Ids:
        """Return the found ids, with true neighbours in place of ids that are exactly as near as the last of them."""
        tied = np.flatnonzero(self._ends_in_a_tie(k))
        if not len(tied):
            return found_ids_QC
        settled_QC, found_tC = found_ids_QC.copy(), found_ids_QC[tied]
        scores_tC = exact_scores(self.vectors_QD[tied], found_tC, self.fetching(found_tC))
        for question, scores_C in zip(tied.tolist(), scores_tC, strict=True):
            true_scores_k = self.scores_QK[question, :k]
            true = self.ids_QK[question, :k][true_scores_k == true_scores_k[-1]]
            equal = np.flatnonzero(scores_C == true_scores_k[-1])[: len(true)]
            settled_QC[question, equal] = true[: len(equal)]
        return settled_QC

    def _ends_in_a_tie(self, k: int) -> npt.NDArray[np.bool_]:
        """Return whether more than one passage may be the k-th nearest, for each question (Q,).

        If no neighbour after the k-th is known, an equally near one before it shows that.
        """
        width = self.ids_QK.shape[1]
        if k > width or width < 2:
            return np.zeros(len(self.ids_QK), np.bool_)
        beside = k if k < width else k - 2
        tied_Q: npt.NDArray[np.bool_] = self.scores_QK[:, beside] == self.scores_QK[:, k - 1]
        tied_Q &= self.ids_QK[:, k - 1] != MISSING
        return tied_Q
