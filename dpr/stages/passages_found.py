"""What the gate compares: passages as users get them. Of windows of a long text, only the best one counts.

Shapes: Q questions, K hits.
"""

from collections.abc import Sequence

import numpy as np

from dpr.evaluate.answers import accuracy
from dpr.evaluate.questions import QuestionSet
from dpr.formats import MISSING
from dpr.index.candidates import rescore
from dpr.index.truth import Ids, Scores, recall_of_new
from dpr.search.best_windows import first_of_passages
from dpr.search.hits import Hit
from dpr.search.segment_set import SegmentSet
from dpr.search.vector_search import VectorSearch
from dpr.stages.find_truth import Truth

WINDOWS_DEEPER = 4
"""So many times as many exact neighbours are found where rows are windows, of which a passage may have several."""


def true_passages(truth: Truth, search: VectorSearch, questions_QD: Scores) -> tuple[Scores, Ids]:
    """Return the exact neighbours as users have them: all rows of the truth, or of windows the best of each passage.

    Questions for which the rows of the truth hold too few passages are compared with all rows again.
    """
    true = truth.scores_QK, truth.ids_QK
    if not search.windows:
        return true
    depth = truth.ids_QK.shape[1] // WINDOWS_DEEPER
    scores_QK, ids_QK = first_of_passages(true, search.passages(truth.ids_QK), depth)
    short = np.flatnonzero((ids_QK[:, -1] == MISSING) & (truth.ids_QK[:, -1] != MISSING))
    scores_QK[short], ids_QK[short] = search.exact(questions_QD[short], depth)
    return scores_QK, ids_QK


def recall_of_segments(
    segments: Sequence[int], search: VectorSearch, questions_QD: Scores, found: tuple[Scores, Ids]
) -> float | None:
    """Return the recall of passages of new segments, by number, which alone are compared with the questions.

    `found` is what the search gives for these questions. None: no new passage belongs among the best.
    """
    k = found[1].shape[1]
    if not search.settings.rescore:  # scores of codes are compared with no exact ones
        found = rescore(questions_QD, found[1], search.segments.fetching(found[1]), k)
    scores_QK, ids_QK = search.exact_among(questions_QD, k, segments)
    return recall_of_new((found[0], search.passages(found[1])), (scores_QK, search.passages(ids_QK)))


def share_answered(
    questions: QuestionSet, segments: SegmentSet, found: tuple[Scores, Ids], at: Sequence[int]
) -> dict[str, float]:
    """Rank → share of questions answered within it. Only the column that decides is read, each part of it once."""
    scores_QK, ids_QK = found
    there_QK = ids_QK >= 0
    by_text = questions.answers == "strings"
    values = iter(segments.column("text" if by_text else "id", ids_QK[there_QK]))
    hits = []
    for scores_K, there_K in zip(scores_QK, there_QK, strict=True):
        ranked = enumerate(scores_K[there_K].tolist(), 1)
        hits.append([_hit(rank, score, next(values), by_text=by_text) for rank, score in ranked])
    return {str(k): share for k, share in accuracy(questions, hits, at).items()}


def _hit(rank: int, score: float, value: str, *, by_text: bool) -> Hit:
    return Hit(rank, score, "" if by_text else value, "", value if by_text else "")
