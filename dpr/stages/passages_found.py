"""The passages that the gate compares, as users get them: of the windows of a long text, only the best one counts.

Shapes: Q questions, K hits.
"""

from collections.abc import Sequence

import numpy as np

from dpr.evaluate.answers import first_correct_rank
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
"""Factor of the exact neighbours that are found if rows are windows, of which a passage may have several."""


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
    if not search.settings.rescore:  # scores of codes cannot be compared with exact ones
        found = rescore(questions_QD, found[1], search.segments.fetching(found[1]), k)
    scores_QK, ids_QK = search.exact_among(questions_QD, k, segments)
    return recall_of_new((found[0], search.passages(found[1])), (scores_QK, search.passages(ids_QK)))


def answered_ranks(questions: QuestionSet, segments: SegmentSet, ids_QK: Ids) -> list[int | None]:
    """Return the rank of the first hit that answers each question, None if none does.

    Only the column that decides is read, each part of it once.
    """
    there_QK = ids_QK >= 0
    by_text = questions.answers != "ids"
    values = iter(segments.column("text" if by_text else "id", ids_QK[there_QK]))
    ranks = []
    for question, there_K in zip(questions.questions, there_QK, strict=True):
        hits = [_hit(rank, next(values), by_text=by_text) for rank in range(1, int(there_K.sum()) + 1)]
        ranks.append(first_correct_rank(question, questions.answers, hits))
    return ranks


def _hit(rank: int, value: str, *, by_text: bool) -> Hit:
    return Hit(rank, 0.0, "" if by_text else value, "", value if by_text else "")
