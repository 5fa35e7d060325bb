"""Searching the serving index, and re-scoring what it finds with the stored vectors.

Shapes: Q questions, K hits, C candidates, D dimensions.
"""

from collections.abc import Callable
from dataclasses import dataclass

import faiss
import numpy as np
import numpy.typing as npt

from dpr.errors import EncoderError, IndexBuildError
from dpr.index.kinds import reason
from dpr.index.truth import MISSING, Ids, Scores, best_of

HALF_BITS = np.int32(~0x7000_1FFF)
"""Of a float32, those that the bits of a float16 move to."""
HALF_SCALE = 2.0**112
"""An exponent counts from -15 in float16, and from -127 in float32."""

Fetch = Callable[[Ids], npt.NDArray[np.float16]]
"""From index ids (N,) to stored vectors (N, D)."""


@dataclass(frozen=True)
class SearchSettings:
    """How an index is searched."""

    nprobe: int
    """Inverted lists visited per question; without effect on an index that has none."""
    rescore: int
    """Candidates re-scored exactly; 0: the index's own scores are final."""


def search(index: faiss.Index, questions_QD: Scores, k: int, nprobe: int) -> tuple[Scores, Ids]:
    """The k best by the index's own scores: (scores_QK float32, ids_QK int64), -inf and -1 where it found fewer.

    `nprobe` (at most all lists) holds for this call alone, so threads may search one index with different settings.
    Raises EncoderError for questions of another width.
    """
    if questions_QD.ndim != 2 or questions_QD.shape[1] != index.d:
        raise EncoderError(
            f"questions have shape {questions_QD.shape} and the index takes (questions, {index.d}); use its own encoder"
        )
    questions_QD = np.ascontiguousarray(questions_QD, np.float32)
    try:
        scores_QK, ids_QK = index.search(questions_QD, k, params=_parameters(index, nprobe))
    except RuntimeError as error:
        raise IndexBuildError(
            f"FAISS cannot search an index of kind {type(index).__name__} by inner product with nprobe {nprobe} and "
            f"k {k}: {reason(error)}; choose another index.factory"
        ) from error
    scores_QK[ids_QK == MISSING] = -np.inf
    return scores_QK, ids_QK


def rescore(questions_QD: Scores, candidates_QC: Ids, fetch: Fetch, k: int) -> tuple[Scores, Ids]:
    """The k best candidates by exact inner product: (scores_QK float32, ids_QK int64), ties ranked by lower id.

    Candidates of id -1 are passed over; where fewer than k remain, score -inf and id -1 are returned. `fetch` is given
    ascending ids.
    """
    candidates_QC = np.sort(candidates_QC, axis=1)
    return best_of(exact_scores(questions_QD, candidates_QC, fetch), candidates_QC, k)


def exact_scores(questions_QD: Scores, candidates_QC: Ids, fetch: Fetch) -> Scores:
    """Exact inner products (Q, C) of questions with candidates, summed as in `dpr.index.truth`; -inf for id -1."""
    scores_QC = np.full(candidates_QC.shape, -np.inf, np.float32)
    scaled_QD = questions_QD.astype(np.float64) * HALF_SCALE
    for question_D, ids_C, scores_C in zip(scaled_QD, candidates_QC, scores_QC, strict=True):
        there_C = ids_C != MISSING
        scores_C[there_C] = _widened(fetch(ids_C[there_C])) @ question_D
    return scores_QC


def _widened(half_ND: npt.NDArray[np.float16]) -> npt.NDArray[np.float64]:
    """Finite vectors over `HALF_SCALE`, exactly, in less than half of the time that numpy takes to convert them.

    Their bits are put where float32 has them: the sign stays on top, exponent and fraction go 13 places up.
    """
    bits_ND = half_ND.view(np.int16).astype(np.int32)
    bits_ND <<= 13
    bits_ND &= HALF_BITS
    return bits_ND.view(np.float32).astype(np.float64)


def _parameters(index: faiss.Index, nprobe: int) -> faiss.SearchParameters | None:
    """The parameters that carry `nprobe` through whatever wraps the inverted lists; None if there are none."""
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
