"""Choosing how to fuse: settings to try, and the best of them on some questions.

The gain of a question is 1 / log2(1 + rank) of its first right passage, if that is among the first ten: nDCG@10 of a
question that has one right passage.

Shapes: Q questions, S settings.
"""

import math
from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt

from dpr.formats.lexical_entry import FusionSettings
from dpr.lexical.fusion import FIXED_WEIGHT, NOT_FOUND, Candidates, hybrid_k1, scaled_parts
from dpr.recipe_index import LexicalConfig

GAIN_DEPTH = 10
CANDIDATES = (20, 50, 100, 200)
WEIGHT_TIMES = tuple(2 ** (power / 2) for power in range(-8, 5))
"""Weights are tried around the one that gives both sides equal influence: from a sixteenth of it to four times."""
MIN_LOSS = 0.001
"""Fewer candidates are chosen if the mean gain is lower by less than this."""
Gains = npt.NDArray[np.float64]


def settings_to_try(found: Sequence[Candidates], config: LexicalConfig) -> list[FusionSettings]:
    """Return the settings to try on questions, where the recipe leaves a choice; those with fewer candidates first."""
    given = {"fusion": "linear", "weight": config.weight}
    tried = [given] if config.weight is not None else list(_fusions(found, scaled_parts(config)))
    numbers = [config.candidates] if config.candidates is not None else CANDIDATES
    k1 = hybrid_k1(config)
    return [
        FusionSettings.model_validate({**fields, "candidates": most, "k1": k1}) for most in numbers for fields in tried
    ]


def _fusions(found: Sequence[Candidates], scaled: dict[str, str | float]) -> Iterator[dict[str, str | float]]:
    """Yield the fields of fusions by name; `scaled`: those of *scaled*, without its weight."""
    scales = [math.sqrt(max(1, each.terms)) for each in found]
    for weight in _weights(found, [1.0] * len(found)):
        yield {"fusion": "linear", "weight": weight}
    for weight in _weights(found, scales):
        yield {**scaled, "weight": weight}
    yield {"fusion": "rrf", "weight": FIXED_WEIGHT}


def _weights(found: Sequence[Candidates], scales: Sequence[float]) -> Iterator[float]:
    """Yield weights around the ratio of spreads: the best score minus the worst that a side found, over all questions.

    BM25 is divided by the scale of each question.
    """
    dense = sum(_spread(each.dense_scores_C[each.dense_ranks_C != NOT_FOUND]) for each in found)
    words = (_spread(each.bm25_scores_C[each.bm25_ranks_C != NOT_FOUND]) for each in found)
    bm25 = sum(spread / scale for spread, scale in zip(words, scales, strict=True))
    alike = bm25 / dense if dense and bm25 else FIXED_WEIGHT
    yield from (float(f"{times * alike:.3g}") for times in WEIGHT_TIMES)


def _spread(scores_C: Gains) -> float:
    return float(np.ptp(scores_C)) if len(scores_C) else 0.0


def gain(rank: int | None) -> float:
    """Return the gain of a question whose first right passage has this rank; None: it was not found."""
    return 1.0 / math.log2(1 + rank) if rank is not None and rank <= GAIN_DEPTH else 0.0


def best_settings(settings: Sequence[FusionSettings], gains_QS: Gains) -> FusionSettings:
    """Return the settings with the largest mean gain; those with fewer candidates if they lose almost nothing."""
    means_S = gains_QS.mean(axis=0)
    best = means_S.max()
    fewest = min(each.candidates for each, mean in zip(settings, means_S, strict=True) if mean >= best - MIN_LOSS)
    among = [place for place, each in enumerate(settings) if each.candidates == fewest]
    return settings[max(among, key=lambda place: means_S[place])]
