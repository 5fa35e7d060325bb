"""Exact nearest neighbours by brute force, in bounded memory, and recall against them.

Inner products are summed in float64 and rounded once to float32, so a pair of vectors has the same score however the
work is cut into blocks, and re-scored candidates have the scores of the truth bit for bit. Equal scores rank by id.

Shapes: Q questions, K neighbours, N rows, D dimensions, C candidates, P pairs of a question and an id.
"""

from collections.abc import Iterable, Sequence

import numpy as np
import numpy.typing as npt

Scores = npt.NDArray[np.float32]
Ids = npt.NDArray[np.int64]
Vectors = npt.NDArray[np.float16] | npt.NDArray[np.float32]

MISSING = -1
BLOCK_ROWS = 8_192
BLOCK_QUESTIONS = 1_024


def exact_topk(questions_QD: Scores, blocks: Iterable[tuple[Ids, Vectors]], k: int) -> tuple[Scores, Ids]:
    """The k nearest of all vectors: (scores_QK, ids_QK), best first; where there are fewer, score -inf and id -1.

    `blocks` gives ids (N,) and vectors (N, D), a block at a time; ids must differ. Beyond one block, memory holds the
    scores of 1,024 questions with 8,192 vectors, and the latter in float64.
    """
    best = empty_topk(len(questions_QD), k)
    wide_QD = questions_QD.astype(np.float64)
    for ids_N, vectors_ND in blocks:
        for row in range(0, len(ids_N), BLOCK_ROWS):
            wide_ND = np.asarray(vectors_ND[row : row + BLOCK_ROWS], np.float64)
            for first in range(0, len(wide_QD), BLOCK_QUESTIONS):
                some = slice(first, first + BLOCK_QUESTIONS)
                scores_QN = (wide_QD[some] @ wide_ND.T).astype(np.float32)
                best[0][some], best[1][some] = _improve(
                    (best[0][some], best[1][some]), scores_QN, ids_N[row : row + BLOCK_ROWS]
                )
    return best


def merge_topk(found: Sequence[tuple[Scores, Ids]], k: int) -> tuple[Scores, Ids]:
    """The k best (scores_QK, ids_QK) of several results for the same questions, as over disjoint segments."""
    scores_QC = np.concatenate([scores for scores, _ in found], axis=1)
    ids_QC = np.concatenate([ids for _, ids in found], axis=1)
    return best_of(scores_QC, ids_QC, k)


def best_of(scores_QC: Scores, ids_QC: Ids, k: int) -> tuple[Scores, Ids]:
    """The k best of C candidates for each question, by score and then by lower id; candidates of id -1 do not count."""
    missing_QC = ids_QC == MISSING
    scores_QC = np.where(missing_QC, -np.inf, scores_QC)
    last_QC = np.where(missing_QC, np.iinfo(np.int64).max, ids_QC)
    order_QK = np.lexsort((last_QC, -scores_QC), axis=1)[:, :k]
    scores_QK, ids_QK = empty_topk(len(ids_QC), k)
    each_Q1, width = np.arange(len(ids_QC))[:, None], order_QK.shape[1]
    scores_QK[:, :width], ids_QK[:, :width] = scores_QC[each_Q1, order_QK], ids_QC[each_Q1, order_QK]
    return scores_QK, ids_QK


def recall_at(found_ids_QK: Ids, true_ids_QK: Ids, k: int) -> float:
    """Share of the true k nearest that are among the first k found, over all questions; 1.0 if there are none."""
    return recalls_at(found_ids_QK, true_ids_QK[:, :k], [k])[0]


def recalls_at(found_ids_QC: Ids, true_ids_QK: Ids, depths: Sequence[int]) -> list[float]:
    """For each depth, the share of the true K nearest that are among the first so many found; 1.0 if there are none."""
    places = [
        np.where(there_KC.any(axis=1), there_KC.argmax(axis=1), there_KC.shape[1])[true_K != MISSING]
        for found_C, true_K in zip(found_ids_QC, true_ids_QK, strict=True)
        for there_KC in [found_C == true_K[:, None]]
    ]
    places_P = np.concatenate(places) if places else np.empty(0, np.intp)
    width = found_ids_QC.shape[1]
    return [float((places_P < min(depth, width)).mean()) if len(places_P) else 1.0 for depth in depths]


def empty_topk(questions: int, k: int) -> tuple[Scores, Ids]:
    """The k best of nothing."""
    return np.full((questions, k), -np.inf, np.float32), np.full((questions, k), MISSING, np.int64)


def _improve(best: tuple[Scores, Ids], scores_QN: Scores, ids_N: Ids) -> tuple[Scores, Ids]:
    """The k best of those so far and one more block."""
    best_scores_QK, best_ids_QK = best
    questions, k = best_ids_QK.shape
    floor_Q1 = best_scores_QK[:, -1:]
    if len(ids_N) > k and np.isneginf(floor_Q1).any():  # without a floor, every pair of the block would be sorted
        floor_Q1 = np.maximum(floor_Q1, np.partition(scores_QN, len(ids_N) - k, axis=1)[:, [len(ids_N) - k]])
    question_P, row_P = np.nonzero(scores_QN >= floor_Q1)
    old_P = np.flatnonzero(best_ids_QK.reshape(-1) != MISSING)
    return _ranked(
        np.concatenate([question_P, old_P // k]),
        np.concatenate([scores_QN[question_P, row_P], best_scores_QK.reshape(-1)[old_P]]),
        np.concatenate([ids_N[row_P], best_ids_QK.reshape(-1)[old_P]]),
        (questions, k),
    )


def _ranked(
    question_P: npt.NDArray[np.intp], scores_P: Scores, ids_P: Ids, shape: tuple[int, int]
) -> tuple[Scores, Ids]:
    questions, k = shape
    order = np.lexsort((ids_P, -scores_P, question_P))
    question_P = question_P[order]
    rank_P = np.arange(len(order)) - np.searchsorted(question_P, np.arange(questions))[question_P]
    kept = rank_P < k
    scores_QK, ids_QK = empty_topk(questions, k)
    scores_QK[question_P[kept], rank_P[kept]] = scores_P[order][kept]
    ids_QK[question_P[kept], rank_P[kept]] = ids_P[order][kept]
    return scores_QK, ids_QK
