"""Fusion: one ranking from the results of dense search and of BM25.

All fusions rank the union of the best candidates of each side:

- *linear*: BM25 + weight * inner product (Karpukhin et al. 2020, section 5.1; their weight is 1.1 for unnormalised
  vectors). Each candidate has its true score on both sides, whichever side found it.
- *scaled*: BM25 / sqrt(terms of the question) + weight * inner product. BM25 is a sum over the terms of a question, so
  its scores lie further apart for long questions, and inner products do not. One weight suits short and long questions.
  Where terms are words, BM25 is first increased by a weighted score for pairs: terms that stand side by side in the
  question and in the passage. BM25 below a floor counts as the floor, a share of the question's *reach*: what a passage
  of average length scores that holds each of its terms once. So little may be shared by accident, and is no better
  than nothing.
- *rrf*: the sum of 1 / (60 + rank) over the sides that found it (Cormack et al. 2009). It needs no scale, so it suits
  vectors of any length.

Shapes: C candidates of one question, K hits.
"""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from dpr.formats import MISSING
from dpr.formats.lexical_entry import FusionSettings
from dpr.index.truth import Ids
from dpr.recipe_index import LexicalConfig

RRF_CONSTANT = 60
FIXED_WEIGHT, FIXED_CANDIDATES = 14.0, 20
"""For vectors of unit length, if there are no questions to tune with: with pairs, the best of 10, 12 and 14 on training
questions of SQuAD and of MedQuAD, where more candidates gain next to nothing (decision 45)."""
FIXED_GRAMS_WEIGHT = 20.0
"""The same where terms are pieces of words (docs/log.md)."""
SCALED_FLOOR = 0.15
"""Where questions share words with their passages, it changes next to nothing; more would cost accuracy there
(docs/decisions/0044-bm25-beside-vectors.md)."""
HYBRID_K1 = 0.3
"""BM25's k1 in hybrid search: beside cosines, which terms a passage holds tells more than how often it repeats them
(decision 44)."""
SCALED_PAIRS = 0.6
"""Weight of pairs where terms are words (docs/decisions/0045-pairs-of-words.md)."""
NOT_FOUND = 0
"""In an array of ranks: a candidate that the side did not find."""
Ranks = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]


FORMULAS = {
    "linear": "{bm25} + {weight:g} * inner product",
    "scaled": "{bm25} / sqrt(terms) + {weight:g} * inner product",
    "rrf": "reciprocal rank fusion",
}


@dataclass(frozen=True)
class Candidates:
    """The union of what both sides found for one question."""

    ids_C: Ids
    """Ascending."""
    dense_scores_C: Floats
    dense_ranks_C: Ranks
    bm25_scores_C: Floats
    bm25_ranks_C: Ranks
    terms: int
    """Number of the question's terms, repetitions included."""
    reach: float
    """What a passage of average length scores by words that holds each of the question's known terms once."""
    pair_scores_C: Floats
    """Scores for pairs, which are no part of `bm25_scores_C`."""

    def scores(self, settings: FusionSettings) -> Floats:
        """Return the fused scores (C,); -inf for those beyond the settings' number of candidates on both sides."""
        if settings.fusion != "rrf":
            spread = math.sqrt(max(1, self.terms)) if settings.fusion == "scaled" else 1.0
            bm25_C = self.bm25_scores_C + settings.pairs * self.pair_scores_C
            bm25_C = np.maximum(bm25_C, settings.floor * self.reach)
            scores_C = bm25_C / spread + settings.weight * self.dense_scores_C
        else:
            scores_C = _reciprocal(self.dense_ranks_C) + _reciprocal(self.bm25_ranks_C)
        most = settings.candidates
        inside_C = _within(self.dense_ranks_C, most) | _within(self.bm25_ranks_C, most)
        return np.where(inside_C, scores_C, -np.inf)

    def best(self, settings: FusionSettings, k: int) -> tuple[Floats, npt.NDArray[np.intp]]:
        """Return the scores (K,) and places (K,) of the best candidates; equal scores rank by lower id."""
        scores_C = self.scores(settings)
        order_K = np.argsort(-scores_C, kind="stable")[:k]
        order_K = order_K[np.isfinite(scores_C[order_K])]
        return scores_C[order_K], order_K

    def of_passages(self, owners_C: Ids) -> "Candidates":
        """Return the candidates with the windows of one passage merged into one.

        A passage has the best score and the best rank of its windows on each side, and the id of the one whose vector
        is nearest.
        """
        _, groups_C = np.unique(owners_C, return_inverse=True)
        order_C = np.lexsort((-self.dense_scores_C, groups_C))
        starts = np.flatnonzero(np.diff(groups_C[order_C], prepend=-1))
        ids_P = self.ids_C[order_C[starts]]
        ascending_P = np.argsort(ids_P)

        def best(values_C: npt.NDArray[Any], pick: np.ufunc) -> npt.NDArray[Any]:
            return pick.reduceat(values_C[order_C], starts)[ascending_P] if len(starts) else values_C

        def first(ranks_C: Ranks) -> Ranks:
            last = np.iinfo(np.int64).max
            ranks_P = best(np.where(ranks_C == NOT_FOUND, last, ranks_C), np.minimum)
            return np.where(ranks_P == last, NOT_FOUND, ranks_P)

        return Candidates(
            ids_P[ascending_P],
            best(self.dense_scores_C, np.maximum),
            first(self.dense_ranks_C),
            best(self.bm25_scores_C, np.maximum),
            first(self.bm25_ranks_C),
            self.terms,
            self.reach,
            best(self.pair_scores_C, np.maximum),
        )


def fixed_settings(config: LexicalConfig, *, unit_length: bool) -> FusionSettings:
    """Return how to fuse if there are no questions to tune with: as the recipe says, else by the length of vectors."""
    candidates, k1 = config.candidates or FIXED_CANDIDATES, hybrid_k1(config)
    if config.weight is not None:
        return FusionSettings(fusion="linear", weight=config.weight, candidates=candidates, k1=k1)
    weight = FIXED_WEIGHT if config.grams is None else FIXED_GRAMS_WEIGHT
    if unit_length:
        fields = {"weight": weight, "candidates": candidates, "k1": k1, **scaled_parts(config)}
        return FusionSettings.model_validate(fields)
    return FusionSettings(fusion="rrf", weight=weight, candidates=candidates, k1=k1)


def scaled_parts(config: LexicalConfig) -> dict[str, str | float]:
    """Return what belongs to *scaled*, by name, whatever its weight is."""
    return {"fusion": "scaled", "floor": SCALED_FLOOR, "pairs": SCALED_PAIRS if has_pairs(config) else 0.0}


def has_pairs(config: LexicalConfig) -> bool:
    """Return whether pairs may count: where terms are words, and the recipe gives no weight of *linear*."""
    return config.grams is None and config.weight is None


def hybrid_k1(config: LexicalConfig) -> float | None:
    """Return BM25's k1 in hybrid search: that of the index (None) if the recipe gives a weight, which belongs to it."""
    return HYBRID_K1 if config.weight is None else None


def describe(settings: FusionSettings) -> str:
    """Describe how both sides are fused."""
    bm25 = "BM25" if settings.k1 is None else f"BM25 (k1 {settings.k1:g})"
    if settings.pairs:
        bm25 = f"{bm25} + {settings.pairs:g} * pairs"
    if settings.floor:
        bm25 = f"max({bm25}, {settings.floor:g} of a full match)"
    formula = FORMULAS[settings.fusion].format(bm25=bm25, weight=settings.weight)
    return f"{formula} over {settings.candidates} candidates of each"


def ranks_of(found_K: Ids, ids_C: Ids) -> Ranks:
    """Return the rank (C,) of each id in a result (K,), best first; 0 for those that it does not hold.

    `ids_C` ascend and hold all that was found.
    """
    ranks_C = np.full(len(ids_C), NOT_FOUND, np.int64)
    found_K = found_K[found_K != MISSING]
    ranks_C[np.searchsorted(ids_C, found_K)] = np.arange(1, len(found_K) + 1)
    return ranks_C


def _within(ranks_C: Ranks, most: int) -> npt.NDArray[np.bool_]:
    within_C: npt.NDArray[np.bool_] = (ranks_C != NOT_FOUND) & (ranks_C <= most)
    return within_C


def _reciprocal(ranks_C: Ranks) -> Floats:
    return np.where(ranks_C == NOT_FOUND, 0.0, 1.0 / (RRF_CONSTANT + ranks_C))
