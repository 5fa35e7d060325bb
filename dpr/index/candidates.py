"""Finding candidates with an index, and re-scoring them with the stored vectors.

Shapes: Q questions, K hits, C candidates, D dimensions.
"""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import faiss
import numpy as np
import numpy.typing as npt

from dpr.errors import EncoderError, IndexBuildError
from dpr.formats import MISSING
from dpr.index.hardware import BULK_QUESTIONS, bulk_threads, faiss_threads, search_threads
from dpr.index.kinds import inverted, reason, searched, transformed
from dpr.index.products import row_products, slices
from dpr.index.row_bits import RowBits
from dpr.index.truth import Ids, Scores, empty_topk, first_by_score

FLOAT32_BYTES = 4
TASK_CANDIDATES = 4_096
"""Candidates that one thread re-scores at a time, in bulk."""
Fetch = Callable[[Ids], npt.NDArray[np.float16]]
"""Maps index ids (N,) to stored vectors (N, D). With many questions, several threads call it at once."""


@dataclass(frozen=True)
class SearchSettings:
    """How an index is searched."""

    nprobe: int
    """Inverted lists visited per question, on average if there is a margin; in a graph, the candidates that its search
    keeps (FAISS's efSearch). Without effect on other kinds."""
    rescore: int
    """Candidates re-scored exactly; 0: the index's own scores are final."""
    at: int = 20
    """Hits that the settings were tuned for; more hits need as many more candidates."""
    margin: float | None = None
    """How far below the best `at` found first a list's centroid may score, so that it is visited, by a question of
    length 1; None: every question visits `nprobe` lists."""

    def candidates(self, k: int) -> int:
        """Return how many candidates to get from the index, to return k hits."""
        return max(k, self.rescore * max(k, self.at) // self.at)


MIN_SCORE = np.finfo(np.float32).min
Lists = tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]
"""Coarse scores (Q, P) and numbers (Q, P) of the inverted lists that each question visits."""


def nearest_lists(
    index: faiss.Index, questions_QD: Scores, nprobe: int, empty_L: npt.NDArray[np.bool_], *, spare: bool = True
) -> Lists:
    """Return the inverted lists that each question visits, to pass to `search` for several shards.

    Lists of `empty_L` are not visited, and others take their place. Without `spare`, lists that are ranked by codes are
    those with the best codes, in the order of their exact scores; this is for ranking more lists than are visited.
    """
    ivf, vectors_QD = _inverted_lists(index), transformed(index, questions_QD)
    quantizer = faiss.downcast_index(ivf.quantizer)
    by_code = not spare and isinstance(quantizer, faiss.IndexRefine)
    params = faiss.IndexRefineSearchParameters(k_factor=1.0) if by_code else None
    empty = int(empty_L.sum())
    with faiss_threads(search_threads(len(vectors_QD), _compared_bytes(quantizer, nprobe))):
        found: Lists = quantizer.search(vectors_QD, min(nprobe + empty, ivf.nlist), params=params)
    if not empty:
        return found
    return first_of(*found, (found[1] != MISSING) & ~empty_L[found[1]], nprobe)


def search(
    index: faiss.Index,
    questions_QD: Scores,
    k: int,
    nprobe: int,
    lists: Lists | None = None,
    rows: RowBits | None = None,
) -> tuple[Scores, Ids]:
    """Return the k best by the index's own scores: (scores_QK float32, ids_QK int64); -inf and -1 where it found fewer.

    `nprobe` (at most all lists) holds for this call alone, so threads may search one index with different settings.
    If `lists` are given, they are visited, and if `rows` are given with them, no others are found. More than
    `BULK_QUESTIONS` questions are searched by all threads, unless `faiss_threads` sets a limit; fewer by as many of
    FAISS's threads as have enough to do. Raises EncoderError for questions of another width, IndexBuildError for a kind
    that cannot be searched this way.
    """
    if questions_QD.ndim != 2 or questions_QD.shape[1] != index.d:
        raise EncoderError(
            f"questions have shape {questions_QD.shape} and the index takes (questions, {index.d}); use its own encoder"
        )
    questions_QD = np.ascontiguousarray(questions_QD, np.float32)
    try:
        with faiss_threads(search_threads(len(questions_QD), _compared_bytes(index, nprobe))):
            if lists is None:
                scores_QK, ids_QK = index.search(questions_QD, k, params=_parameters(index, nprobe))
            else:
                scores_QK, ids_QK = _search_lists(index, questions_QD, k, lists, rows)
    except RuntimeError as error:
        raise IndexBuildError(
            f"FAISS cannot search an index of kind {type(index).__name__} by inner product with nprobe {nprobe} and "
            f"k {k}: {reason(error)}; choose another index.factory"
        ) from error
    scores_QK[ids_QK == MISSING] = -np.inf
    return scores_QK, ids_QK


def _search_lists(
    index: faiss.Index, questions_QD: Scores, k: int, lists: Lists, rows: RowBits | None
) -> tuple[Scores, Ids]:
    ivf, vectors_QD = _inverted_lists(index), transformed(index, questions_QD)
    numbers_QP = np.ascontiguousarray(lists[1])
    # FastScan rounds the coarse scores of a question together, so the placeholder for no list must not be far from them
    coarse_QP = np.where(numbers_QP == MISSING, np.maximum(lists[0][:, :1], MIN_SCORE), lists[0])
    scores_QK, ids_QK = np.empty((len(vectors_QD), k), np.float32), np.empty((len(vectors_QD), k), np.int64)
    arrays = [faiss.swig_ptr(array) for array in (numbers_QP, coarse_QP, scores_QK, ids_QK)]
    selector = None if rows is None else rows.selector
    parameters = faiss.SearchParametersIVF(nprobe=numbers_QP.shape[1], sel=selector)
    # FAISS's Python search_preassigned takes no parameters, and without them the index's own nprobe would apply
    ivf.search_preassigned_c(len(vectors_QD), faiss.swig_ptr(vectors_QD), k, *arrays, False, parameters)
    return scores_QK, ids_QK


def first_of(scores_QC: Scores, ids_QC: Ids, wanted_QC: npt.NDArray[np.bool_], k: int) -> tuple[Scores, Ids]:
    """Return the first k candidates that are wanted, in their order; -inf and -1 where there are fewer."""
    order_QK = np.argsort(~wanted_QC, axis=1, kind="stable")[:, :k]
    wanted_QK = np.take_along_axis(wanted_QC, order_QK, axis=1)
    scores_QK, ids_QK = empty_topk(len(ids_QC), k)
    width = order_QK.shape[1]
    scores_QK[:, :width] = np.where(wanted_QK, np.take_along_axis(scores_QC, order_QK, axis=1), -np.inf)
    ids_QK[:, :width] = np.where(wanted_QK, np.take_along_axis(ids_QC, order_QK, axis=1), MISSING)
    return scores_QK, ids_QK


def _compared_bytes(index: faiss.Index, nprobe: int) -> float:
    """Return the bytes that a question is compared with, on average."""
    inner = searched(index)
    if isinstance(inner, faiss.IndexHNSW):
        return float(nprobe * int(inner.hnsw.nb_neighbors(0)) * FLOAT32_BYTES * int(inner.d))
    share = min(1.0, nprobe / int(inner.nlist)) if isinstance(inner, faiss.IndexIVF) else 1.0
    return share * int(inner.ntotal) * int(getattr(inner, "code_size", FLOAT32_BYTES * int(inner.d)))


def _inverted_lists(index: faiss.Index) -> faiss.IndexIVF:
    ivf = inverted(index)
    if ivf is None:
        raise IndexBuildError(f"an index of kind {type(index).__name__} has no inverted lists to be searched by number")
    return ivf


def rescore(questions_QD: Scores, candidates_QC: Ids, fetch: Fetch, k: int) -> tuple[Scores, Ids]:
    """Return the k best candidates by exact score: (scores_QK float32, ids_QK int64), equal scores ranked by lower id.

    Candidates of id -1 are skipped; where fewer than k remain, score -inf and id -1 are returned. `fetch` is given
    ascending ids.
    """
    candidates_QC = np.sort(candidates_QC, axis=1)
    return first_by_score(exact_scores(questions_QD, candidates_QC, fetch), candidates_QC, k)


def exact_scores(questions_QD: Scores, candidates_QC: Ids, fetch: Fetch) -> Scores:
    """Return the inner products (Q, C) of questions with candidates, summed in float64; -inf for id -1.

    More than `BULK_QUESTIONS` questions are scored by all threads, unless `faiss_threads` sets a limit. The vectors of
    several questions are then fetched together, each once.
    """
    scores_QC = np.full(candidates_QC.shape, -np.inf, np.float32)
    exact_QD = questions_QD.astype(np.float64)
    there_QC = candidates_QC != MISSING

    def score(some: slice) -> None:
        there_qC = there_QC[some]
        ids_N, places_P = np.unique(candidates_QC[some][there_qC], return_inverse=True)
        rows_qC = np.full(there_qC.shape, -1)
        rows_qC[there_qC] = places_P
        scores_QC[some] = np.where(there_qC, row_products(fetch(ids_N), rows_qC, exact_QD[some]), -np.inf)

    if len(questions_QD) > BULK_QUESTIONS:
        several = max(1, TASK_CANDIDATES // max(1, candidates_QC.shape[1]))
        with ThreadPoolExecutor(bulk_threads()) as pool:
            list(pool.map(score, slices(len(questions_QD), several)))
    else:
        for question, there_C in enumerate(there_QC):
            vectors_CD = fetch(candidates_QC[question, there_C])
            scores_QC[question, there_C] = np.vecdot(vectors_CD.astype(np.float64), exact_QD[question])
    return scores_QC


def _parameters(index: faiss.Index, nprobe: int) -> faiss.SearchParameters | None:
    """Return parameters that set `nprobe` through all wrappers of the inverted lists; None if there are no lists."""
    if isinstance(index, faiss.IndexIVF):
        return faiss.SearchParametersIVF(nprobe=min(nprobe, index.nlist))
    if isinstance(index, faiss.IndexHNSW):
        return faiss.SearchParametersHNSW(efSearch=nprobe)
    if isinstance(index, faiss.IndexIDMap):
        return _parameters(faiss.downcast_index(index.index), nprobe)
    if isinstance(index, faiss.IndexPreTransform):
        inner = _parameters(faiss.downcast_index(index.index), nprobe)
        return inner and faiss.SearchParametersPreTransform(index_params=inner)
    return None
