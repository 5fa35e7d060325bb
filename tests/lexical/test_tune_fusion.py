"""Choosing how to fuse.

Shapes: Q questions, S settings, C candidates.
"""

import math

import numpy as np
import pytest

from dpr.formats.lexical_entry import FusionSettings
from dpr.lexical.fusion import Candidates
from dpr.lexical.tune_fusion import best_settings, gain, settings_to_try
from dpr.recipe_index import LexicalConfig

CANDIDATES_C = Candidates(
    ids_C=np.arange(4),
    dense_scores_C=np.array([0.1, 0.5, 0.3, 0.9]),
    dense_ranks_C=np.array([3, 1, 2, 0]),
    bm25_scores_C=np.array([8.0, 2.0, 0.0, 7.0]),
    bm25_ranks_C=np.array([1, 3, 0, 2]),
    terms=4,
    reach=12.0,
    pair_scores_C=np.zeros(4),
)


def test_weights_lie_around_the_ratio_of_what_the_sides_found() -> None:
    tried = settings_to_try([CANDIDATES_C] * 3, LexicalConfig())
    for fusion, scale in (("linear", 1), ("scaled", 2)):
        weights = sorted({each.weight for each in tried if each.fusion == fusion})
        alike = (8.0 - 2.0) / scale / (0.5 - 0.1)  # hits that only the other side found do not count
        assert weights[0] == pytest.approx(alike / 16, rel=0.01)
        assert weights[-1] == pytest.approx(alike * 4, rel=0.01)
        assert pytest.approx(alike) in weights
    assert {each.candidates for each in tried} == {20, 50, 100, 200}
    assert {each.candidates for each in tried if each.fusion == "rrf"} == {20, 50, 100, 200}
    parts = {(each.fusion, each.floor, each.pairs) for each in tried}
    assert parts == {("linear", 0.0, 0.0), ("scaled", 0.15, 0.6), ("rrf", 0.0, 0.0)}
    of_pieces = settings_to_try([CANDIDATES_C], LexicalConfig(grams=5))
    assert {each.pairs for each in of_pieces} == {0.0}
    assert {each.k1 for each in tried} == {0.3}


def test_what_the_recipe_gives_is_not_tuned() -> None:
    (only,) = settings_to_try([CANDIDATES_C], LexicalConfig(weight=3.5, candidates=70))
    assert only == FusionSettings(fusion="linear", weight=3.5, candidates=70)
    assert {each.candidates for each in settings_to_try([CANDIDATES_C], LexicalConfig(candidates=70))} == {70}


def test_fewer_candidates_are_chosen_where_they_lose_next_to_nothing() -> None:
    settings = [FusionSettings(fusion="linear", weight=w, candidates=c) for c in (50, 200) for w in (1.0, 2.0, 4.0)]
    nothing_lost_QS = np.array([[0.5, 0.6, 0.4, 0.5, 0.6005, 0.4]] * 2)
    assert best_settings(settings, nothing_lost_QS) == settings[1]
    much_lost_QS = np.array([[0.5, 0.59, 0.4, 0.5, 0.6005, 0.4]] * 2)
    assert best_settings(settings, much_lost_QS) == settings[4]


def test_the_gain_is_the_discounted_gain_of_one_right_passage() -> None:
    assert [gain(rank) for rank in (1, 3, 10, 11, None)] == [1.0, 0.5, pytest.approx(1 / math.log2(11)), 0.0, 0.0]
