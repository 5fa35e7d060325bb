"""Searching where rows are windows of long texts: each passage once, by its best window.

More rows are requested, repeatedly, until there are k passages or no further rows. So the answer is the one that
ranking all windows and then dropping all but the first of each passage would give.

Shapes: Q questions, C candidates, K hits.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from dpr.formats import MISSING
from dpr.index.truth import Ids, Scores, empty_topk

FIRST_WIDTH, WIDER = 2, 4
"""Rows requested at first, as a multiple of k, and later, as a multiple of the previous request."""
SearchRows = Callable[[Any, int], tuple[Scores, Ids]]
"""Maps questions (Q, …) and a number of rows to the best rows: (scores_QC, ids_QC), best first."""
Owners = Callable[[Ids], Ids]
"""Maps index ids to numbers of their passages, -1 to -1."""


def best_passages(
    search: SearchRows, owners: Owners, questions_Q: npt.NDArray[Any], k: int, rows: int
) -> tuple[Scores, Ids]:
    """Return the best window of each of the k best passages: (scores_QK float32, ids_QK int64), -inf and -1 if fewer.

    Questions are vectors (Q, D), or texts (Q,). `rows`: the number of rows that can be found.
    """
    scores_QK, ids_QK = empty_topk(len(questions_Q), k)
    open_Q = np.arange(len(questions_Q))
    width = FIRST_WIDTH * k
    while len(open_Q):
        found = search(questions_Q[open_Q], min(width, rows))
        scores_QK[open_Q], ids_QK[open_Q] = first_of_passages(found, owners(found[1]), k)
        open_Q = open_Q[ids_QK[open_Q, -1] == MISSING] if width < rows else open_Q[:0]
        width *= WIDER
    return scores_QK, ids_QK


def first_of_passages(found: tuple[Scores, Ids], owners_QC: Ids, k: int) -> tuple[Scores, Ids]:
    """Return the first candidate of each passage, at most k of them, in their order: (scores_QK, ids_QK)."""
    scores_QC, ids_QC = found
    scores_QK, ids_QK = empty_topk(len(ids_QC), k)
    for question, owners_C in enumerate(owners_QC):
        _, places = np.unique(owners_C, return_index=True)
        places = np.sort(places[ids_QC[question, places] != MISSING])[:k]
        scores_QK[question, : len(places)] = scores_QC[question, places]
        ids_QK[question, : len(places)] = ids_QC[question, places]
    return scores_QK, ids_QK
