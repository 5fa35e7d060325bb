"""Fusion against the formulas, written out for one candidate at a time."""

from dataclasses import replace

import numpy as np
import pytest

from dpr.formats.lexical_entry import FusionSettings
from dpr.lexical.fusion import Candidates, fixed_settings, ranks_of
from dpr.recipe_index import LexicalConfig

DENSE = {10: 0.9, 20: 0.8, 30: 0.7, 40: 0.1, 50: 0.3}
BM25 = {10: 1.0, 20: 0.0, 30: 9.0, 40: 8.0, 50: 2.0}
BY_DENSE, BY_WORDS = [10, 20, 30], [30, 40, 50]
"""What each side found, best first."""
IDS = np.array(sorted(DENSE))
CANDIDATES = Candidates(
    ids_C=IDS,
    dense_scores_C=np.array([DENSE[id_] for id_ in sorted(DENSE)]),
    dense_ranks_C=ranks_of(np.array([*BY_DENSE, -1]), IDS),
    bm25_scores_C=np.array([BM25[id_] for id_ in sorted(BM25)]),
    bm25_ranks_C=ranks_of(np.array(BY_WORDS), IDS),
    terms=9,
)


def settings(fusion: str, weight: float = 10.0, candidates: int = 3) -> FusionSettings:
    return FusionSettings.model_validate({"fusion": fusion, "weight": weight, "candidates": candidates})


def test_the_linear_combination_adds_true_scores_of_both_sides() -> None:
    expected = {id_: BM25[id_] + 10 * DENSE[id_] for id_ in DENSE}
    scores, places = CANDIDATES.best(settings("linear"), 4)
    assert CANDIDATES.ids_C[places].tolist() == sorted(expected, key=lambda id_: -expected[id_])[:4]
    assert scores == pytest.approx(sorted(expected.values(), reverse=True)[:4])


def test_scores_by_words_are_scaled_by_the_length_of_the_question() -> None:
    expected = {id_: BM25[id_] / 3 + 5 * DENSE[id_] for id_ in DENSE}
    scores, places = CANDIDATES.best(settings("scaled", weight=5.0), 4)
    assert CANDIDATES.ids_C[places].tolist() == sorted(expected, key=lambda id_: -expected[id_])[:4]
    assert scores == pytest.approx(sorted(expected.values(), reverse=True)[:4])
    without_terms = replace(CANDIDATES, terms=0)
    assert without_terms.best(settings("scaled"), 5)[0] == pytest.approx(CANDIDATES.best(settings("linear"), 5)[0])


def test_reciprocal_ranks_are_added_over_the_sides_that_found_a_candidate() -> None:
    expected = {id_: sum(1 / (61 + side.index(id_)) for side in (BY_DENSE, BY_WORDS) if id_ in side) for id_ in DENSE}
    scores, places = CANDIDATES.best(settings("rrf"), 5)
    assert CANDIDATES.ids_C[places].tolist() == sorted(expected, key=lambda id_: (-expected[id_], id_))
    assert scores == pytest.approx(sorted(expected.values(), reverse=True))


@pytest.mark.parametrize(
    ("config", "unit_length", "expected"),
    [
        (LexicalConfig(), True, ("scaled", 10.0, 20)),
        (LexicalConfig(), False, ("rrf", 10.0, 20)),
        (LexicalConfig(weight=1.1), False, ("linear", 1.1, 20)),
        (LexicalConfig(candidates=70), True, ("scaled", 10.0, 70)),
        (LexicalConfig(grams=5), True, ("scaled", 20.0, 20)),
    ],
)
def test_without_questions_recipe_and_length_of_vectors_decide(
    config: LexicalConfig, unit_length: bool, expected: tuple[str, float, int]
) -> None:
    made = fixed_settings(config, unit_length=unit_length)
    assert (made.fusion, made.weight, made.candidates) == expected


@pytest.mark.parametrize("fusion", ["linear", "scaled", "rrf"])
def test_only_the_first_of_each_side_are_candidates(fusion: str) -> None:
    _, places = CANDIDATES.best(settings(fusion, candidates=1), 5)
    assert sorted(CANDIDATES.ids_C[places].tolist()) == [10, 30]


def test_windows_of_a_passage_are_one_candidate() -> None:
    owner = {10: 7, 20: 8, 30: 7, 40: 9, 50: 8}
    found = CANDIDATES.of_passages(np.array([owner[id_] for id_ in IDS.tolist()]))
    for place, id_ in enumerate(found.ids_C.tolist()):
        windows = [other for other in DENSE if owner[other] == owner[id_]]
        assert DENSE[id_] == max(DENSE[window] for window in windows)
        assert found.dense_scores_C[place] == max(DENSE[window] for window in windows)
        assert found.bm25_scores_C[place] == max(BM25[window] for window in windows)
        for ranks_C, side in ((found.dense_ranks_C, BY_DENSE), (found.bm25_ranks_C, BY_WORDS)):
            assert ranks_C[place] == min((side.index(w) + 1 for w in windows if w in side), default=0)
    assert found.ids_C.tolist() == sorted(found.ids_C.tolist())
    assert (len(found.ids_C), found.terms) == (3, 9)
