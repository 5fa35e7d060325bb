"""Fusion against the formulas, written out for one candidate at a time."""

from dataclasses import replace

import numpy as np
import pytest

from dpr.formats.lexical_entry import FusionSettings
from dpr.lexical.fusion import Candidates, fixed_settings, ranks_of
from dpr.recipe_index import LexicalConfig

DENSE = {10: 0.9, 20: 0.8, 30: 0.7, 40: 0.1, 50: 0.3}
BM25 = {10: 1.0, 20: 0.0, 30: 9.0, 40: 8.0, 50: 2.0}
PAIRS = {10: 0.0, 20: 0.0, 30: 4.0, 40: 0.0, 50: 3.0}
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
    reach=20.0,
    pair_scores_C=np.array([PAIRS[id_] for id_ in sorted(PAIRS)]),
)


def settings(fusion: str, weight: float = 10.0, candidates: int = 3, **more: float) -> FusionSettings:
    return FusionSettings.model_validate({"fusion": fusion, "weight": weight, "candidates": candidates, **more})


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


@pytest.mark.parametrize(("fusion", "divisor"), [("scaled", 3), ("linear", 1)])
def test_scores_by_words_below_the_floor_count_as_the_floor(fusion: str, divisor: int) -> None:
    expected = {}
    for id_ in DENSE:
        words = BM25[id_] if BM25[id_] > 0.2 * 20 else 0.2 * 20  # three of five are below 4
        expected[id_] = words / divisor + 5 * DENSE[id_]
    scores, places = CANDIDATES.best(settings(fusion, weight=5.0, floor=0.2), 5)
    assert CANDIDATES.ids_C[places].tolist() == sorted(expected, key=lambda id_: -expected[id_])
    assert scores == pytest.approx(sorted(expected.values(), reverse=True))


def test_pairs_count_with_their_weight_beside_the_words() -> None:
    expected = {id_: max(BM25[id_] + 0.6 * PAIRS[id_], 0.2 * 20) / 3 + 5 * DENSE[id_] for id_ in DENSE}
    scores, places = CANDIDATES.best(settings("scaled", weight=5.0, floor=0.2, pairs=0.6), 5)
    assert CANDIDATES.ids_C[places].tolist() == sorted(expected, key=lambda id_: -expected[id_])
    assert scores == pytest.approx(sorted(expected.values(), reverse=True))


def test_a_word_shared_by_accident_does_not_push_aside_what_shares_none() -> None:
    ids_C, dense_C, bm25_C = np.array([1, 2]), np.array([0.5, 0.4]), np.array([0.0, 1.9])
    both = Candidates(ids_C, dense_C, np.array([1, 2]), bm25_C, np.array([0, 1]), 1, 20.0, np.zeros(2))
    assert both.best(settings("scaled"), 1)[1].tolist() == [1]
    assert both.best(settings("scaled", floor=0.1), 1)[1].tolist() == [0]


def test_reciprocal_ranks_are_added_over_the_sides_that_found_a_candidate() -> None:
    expected = {id_: sum(1 / (61 + side.index(id_)) for side in (BY_DENSE, BY_WORDS) if id_ in side) for id_ in DENSE}
    scores, places = CANDIDATES.best(settings("rrf"), 5)
    assert CANDIDATES.ids_C[places].tolist() == sorted(expected, key=lambda id_: (-expected[id_], id_))
    assert scores == pytest.approx(sorted(expected.values(), reverse=True))


@pytest.mark.parametrize(
    ("config", "unit_length", "expected"),
    [
        (LexicalConfig(), True, ("scaled", 14.0, 20, 0.15, 0.3, 0.6)),
        (LexicalConfig(), False, ("rrf", 14.0, 20, 0.0, 0.3, 0.0)),
        (LexicalConfig(weight=1.1), False, ("linear", 1.1, 20, 0.0, None, 0.0)),
        (LexicalConfig(candidates=70), True, ("scaled", 14.0, 70, 0.15, 0.3, 0.6)),
        (LexicalConfig(grams=5), True, ("scaled", 20.0, 20, 0.15, 0.3, 0.0)),
    ],
)
def test_without_questions_recipe_and_length_of_vectors_decide(
    config: LexicalConfig, unit_length: bool, expected: tuple[str, float, int, float, float | None, float]
) -> None:
    made = fixed_settings(config, unit_length=unit_length)
    assert (made.fusion, made.weight, made.candidates, made.floor, made.k1, made.pairs) == expected


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
        assert found.pair_scores_C[place] == max(PAIRS[window] for window in windows)
        for ranks_C, side in ((found.dense_ranks_C, BY_DENSE), (found.bm25_ranks_C, BY_WORDS)):
            assert ranks_C[place] == min((side.index(w) + 1 for w in windows if w in side), default=0)
    assert found.ids_C.tolist() == sorted(found.ids_C.tolist())
    assert (len(found.ids_C), found.terms, found.reach) == (3, 9, 20.0)
