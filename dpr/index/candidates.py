"""Finding candidates with an index, and re-scoring them with the stored vectors.

Shapes: Q questions, K hits, C candidates, D dimensions.
"""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass

import faiss
import numpy as np
import numpy.typing as npt

from dpr.errors import EncoderError, IndexBuildError
from dpr.index.hardware import BULK_QUESTIONS, bulk_threads, faiss_threads
from dpr.index.kinds import reason
from dpr.index.products import HALF_SCALE, scaled_down
from dpr.index.shortlist import slices
from dpr.index.truth import MISSING, Ids, Scores, best_of

TASK_QUESTIONS = 16
"""Questions that one thread re-scores at a time."""
Fetch = Callable[[Ids], npt.NDArray[np.float16]]
"""From index ids (N,) to stored vectors (N, D). With many questions, several threads call it at once."""


@dataclass(frozen=True)
class SearchSettings:
    """How an index is searched."""

    nprobe: int
    """Inverted lists visited per question; without effect on an index that has none."""
    rescore: int
    """Candidates re-scored exactly; 0: the index's own scores are final."""


def search(index: faiss.Index, questions_QD: Scores, k: int, nprobe: int) -> tuple[Scores, Ids]:
    """Return the k best by the index's own scores: (scores_QK float32, ids_QK int64); -inf and -1 where it found fewer.

    `nprobe` (at most all lists) holds for this call alone, so threads may search one index with different settings.
    More than `BULK_QUESTIONS` questions are searched by all threads, unless `faiss_threads` sets a limit. Raises
    EncoderError for questions of another width, IndexBuildError for a kind that cannot be searched this way.
    """
    if questions_QD.ndim != 2 or questions_QD.shape[1] != index.d:
        raise EncoderError(
            f"questions have shape {questions_QD.shape} and the index takes (questions, {index.d}); use its own encoder"
        )
    questions_QD = np.ascontiguousarray(questions_QD, np.float32)
    try:
        with faiss_threads(bulk_threads()) if len(questions_QD) > BULK_QUESTIONS else nullcontext():
            scores_QK, ids_QK = index.search(questions_QD, k, params=_parameters(index, nprobe))
    except RuntimeError as error:
        raise IndexBuildError(
            f"FAISS cannot search an index of kind {type(index).__name__} by inner product with nprobe {nprobe} and "
            f"k {k}: {reason(error)}; choose another index.factory"
        ) from error
    scores_QK[ids_QK == MISSING] = -np.inf
    return scores_QK, ids_QK


def rescore(questions_QD: Scores, candidates_QC: Ids, fetch: Fetch, k: int) -> tuple[Scores, Ids]:
    """Return the k best candidates by exact score: (scores_QK float32, ids_QK int64), equal scores ranked by lower id.

    Candidates of id -1 are passed over; where fewer than k remain, score -inf and id -1 are returned. `fetch` is given
    ascending ids.
    """
    candidates_QC = np.sort(candidates_QC, axis=1)
    return best_of(exact_scores(questions_QD, candidates_QC, fetch), candidates_QC, k)


def exact_scores(questions_QD: Scores, candidates_QC: Ids, fetch: Fetch) -> Scores:
    """Return the exact scores (Q, C) of questions with candidates, as `inner_products` rounds them; -inf for id -1.

    More than `BULK_QUESTIONS` questions are scored by all threads, unless `faiss_threads` sets a limit.
    """
    scores_QC = np.full(candidates_QC.shape, -np.inf, np.float32)
    scaled_QD = questions_QD.astype(np.float64) * HALF_SCALE

    def score(some: slice) -> None:
        for scaled_D, ids_C, scores_C in zip(scaled_QD[some], candidates_QC[some], scores_QC[some], strict=True):
            there_C = ids_C != MISSING
            scores_C[there_C] = scaled_down(fetch(ids_C[there_C])) @ scaled_D

    if len(questions_QD) <= BULK_QUESTIONS:
        score(slice(None))
    else:
        with ThreadPoolExecutor(bulk_threads()) as pool:
            list(pool.map(score, slices(len(questions_QD), TASK_QUESTIONS)))
    return scores_QC


def _parameters(index: faiss.Index, nprobe: int) -> faiss.SearchParameters | None:
    """Return the parameters that carry `nprobe` through all that wraps the inverted lists; None if there are none."""
    if isinstance(index, faiss.IndexIVF):
        return faiss.SearchParametersIVF(nprobe=min(nprobe, index.nlist))
    if isinstance(index, faiss.IndexIDMap):
        return _parameters(faiss.downcast_index(index.index), nprobe)
    if isinstance(index, faiss.IndexPreTransform):
        inner = _parameters(faiss.downcast_index(index.index), nprobe)
        return inner and faiss.SearchParametersPreTransform(index_params=inner)
    if isinstance(index, faiss.IndexRefine):
        inner = _parameters(faiss.downcast_index(index.base_index), nprobe)
        return inner and faiss.IndexRefineSearchParameters(k_factor=index.k_factor, base_index_params=inner)
    return None
