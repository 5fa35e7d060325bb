"""BM25 over segments with dead rows gives the scores of one index over the live texts.

Shapes: Q questions, N texts, K hits, C other ids.
"""

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from dpr.errors import IntegrityError, RecipeError
from dpr.lexical.analysis import Analyzer, check_language, term_hashes
from dpr.lexical.bm25 import Bm25, Found
from dpr.lexical.postings import invert, map_postings, write_postings
from dpr.recipe_index import LexicalConfig
from tests.lexical.oracle import bm25s_scores, formula_pairs, formula_reach, formula_scores, tokens
from tests.tiny import random_texts

TEXTS = [*random_texts(120, max_words=30).values(), "", "the of", "w1 w1 w1 W1, (w1)"]
QUESTIONS = ["w1 w2 w3", "w7", "w150 w20 w150 w150", "what is the w9?", "nowhere", ""]
CONFIGS = [
    LexicalConfig(),
    LexicalConfig(k1=1.5, b=0.75),
    LexicalConfig(k1=0),
    LexicalConfig(k1=1.2, b=1),
    LexicalConfig(grams=3),
]
CUTS = [0, 50, 51, 90, len(TEXTS)]


def search(
    texts: Sequence[str],
    dead: set[int],
    config: LexicalConfig,
    others_QC: object = None,
    k1: float | None = None,
    *,
    pairs: bool = False,
) -> Found:
    """Search texts that are cut into segments 3, 4, 5, …, some of whose rows are dead."""
    analyzer = Analyzer(config)
    segments = {}
    for number, (first, last) in enumerate(pairwise(CUTS), 3):
        live = np.array([n not in dead for n in range(first, last)])
        segments[number] = invert(texts[first:last], analyzer), live
    hashes = [term_hashes(analyzer.terms(question)) for question in QUESTIONS]
    index = Bm25(segments, config.k1, config.b)
    return index.search(hashes, len(texts), others_QC, k1=k1, pairs=pairs)  # type: ignore[arg-type]


def id_of(text: int) -> int:
    segment = int(np.searchsorted(CUTS, text, side="right")) - 1
    return (segment + 3) << 32 | (text - CUTS[segment])


@pytest.mark.parametrize("config", CONFIGS)
@pytest.mark.parametrize("dead", [set(), {0, 3, 50, 121}, set(range(51, 90)) | {7}])
def test_scores_are_those_of_one_index_over_the_live_texts(config: LexicalConfig, dead: set[int]) -> None:
    live = [n for n in range(len(TEXTS)) if n not in dead]
    live_texts = [TEXTS[n] for n in live]
    expected_QN = bm25s_scores(live_texts, QUESTIONS, config)
    np.testing.assert_allclose(expected_QN, formula_scores(live_texts, QUESTIONS, config), atol=1e-4)
    every_QC = np.tile([*map(id_of, live), -1], (len(QUESTIONS), 1))
    found = search(TEXTS, dead, config, every_QC)
    np.testing.assert_allclose(found.others_QC[:, :-1], expected_QN, atol=1e-4)
    np.testing.assert_allclose(found.reach_Q, formula_reach(live_texts, QUESTIONS, config), rtol=1e-5)
    for question, scores_N in enumerate(expected_QN):
        there = found.ids_QK[question] >= 0
        ids, scores = found.ids_QK[question][there].tolist(), found.scores_QK[question][there]
        by_id = dict(zip(map(id_of, live), scores_N.tolist(), strict=True))
        assert len(set(ids)) == len(ids) == np.count_nonzero(scores_N)
        np.testing.assert_allclose(scores, sorted(scores_N[scores_N > 0], reverse=True), atol=1e-4)
        np.testing.assert_allclose(scores, [by_id[id_] for id_ in ids], atol=1e-4)
        assert (np.diff(scores) <= 0).all()


@pytest.mark.parametrize("dead", [set(), {0, 3, 50, 121}, set(range(51, 90)) | {7}])
@pytest.mark.parametrize("k1", [0.3, 2.0])
def test_terms_side_by_side_score_by_the_same_formula(k1: float, dead: set[int]) -> None:
    words = ["w1", "w2", "w3", "w7", "w9", "w20", "w150", "W2,", "the"]  # stop words between do not count
    draw = np.random.default_rng(0)
    texts = [" ".join(draw.choice(words, size)) for size in draw.integers(0, 15, len(TEXTS))]
    live = [n for n in range(len(texts)) if n not in dead]
    expected_QN = formula_pairs([texts[n] for n in live], QUESTIONS, LexicalConfig(k1=k1))
    assert np.count_nonzero(expected_QN) > 30
    every_QC = np.tile([*map(id_of, live), -1], (len(QUESTIONS), 1))
    found = search(texts, dead, LexicalConfig(), every_QC, k1, pairs=True)
    np.testing.assert_allclose(found.other_pairs_QC[:, :-1], expected_QN, atol=1e-4)
    for question, scores_N in enumerate(expected_QN):
        by_id = dict(zip(map(id_of, live), scores_N.tolist(), strict=True)) | {-1: 0.0}
        expected_K = [by_id[id_] for id_ in found.ids_QK[question].tolist()]
        np.testing.assert_allclose(found.pairs_QK[question], expected_K, atol=1e-4)
    without = search(texts, dead, LexicalConfig(), every_QC, k1)
    assert not without.pairs_QK.any()
    assert not without.other_pairs_QC.any()
    for name in ("scores_QK", "ids_QK", "others_QC", "reach_Q"):
        np.testing.assert_array_equal(getattr(without, name), getattr(found, name))


def test_a_question_has_the_same_answer_alone_and_among_many() -> None:
    analyzer = Analyzer(LexicalConfig())
    live = np.array([n % 7 != 3 for n in range(len(TEXTS))])
    index = Bm25({4: (invert(TEXTS, analyzer), live), 9: (invert(TEXTS[::-1], analyzer), live[::-1])}, 0.9, 0.4)
    rng = np.random.default_rng(5)
    texts = ["", *TEXTS, *(" ".join(rng.permutation(text.split())) for text in TEXTS)]
    questions = [term_hashes(analyzer.terms(text)) for text in texts]
    others_QC = np.tile([4 << 32, 4 << 32 | 5, 9 << 32 | 7, -1], (len(questions), 1))
    together = index.search(questions, 12, others_QC, pairs=True)
    for number, question in enumerate(questions):
        alone = index.search([question], 12, others_QC[number : number + 1], pairs=True)
        for many, one in zip(together, alone, strict=True):
            np.testing.assert_array_equal(many[number], one[0])


def test_pieces_of_words_have_no_order_to_find_pairs_in() -> None:
    with pytest.raises(IntegrityError, match="does not hold the order of its terms; run again"):
        search(TEXTS, set(), LexicalConfig(grams=3), pairs=True)


@pytest.mark.parametrize("k1", [0.0, 0.3, 2.0])
def test_a_search_may_have_another_k1(k1: float) -> None:
    dead, config = {0, 3, 50, 121}, LexicalConfig(k1=k1)
    found, expected = search(TEXTS, dead, LexicalConfig(), k1=k1), search(TEXTS, dead, config)
    for got, wanted in zip(found, expected, strict=True):
        np.testing.assert_array_equal(got, wanted)
    live_texts = [text for n, text in enumerate(TEXTS) if n not in dead]
    best_Q = formula_scores(live_texts, QUESTIONS, config).max(axis=1)
    np.testing.assert_allclose(np.maximum(found.scores_QK[:, 0], 0), best_Q, atol=1e-4)


def test_the_first_of_equal_texts_come_first_however_few_are_asked_for() -> None:
    analyzer = Analyzer(LexicalConfig())
    live = np.ones(40, np.bool_)
    segments = {number: (invert(["w1 w2"] * 40, analyzer), live) for number in (2, 0)}
    found = Bm25(segments, 0.9, 0.4).search([term_hashes(["w1"])], 45)
    assert found.ids_QK[0].tolist() == [*range(40), *(2 << 32 | row for row in range(5))]


@pytest.mark.parametrize(
    "config",
    [
        LexicalConfig(),
        LexicalConfig(stemming=False),
        LexicalConfig(stop_words=False),
        LexicalConfig(language="german"),
        LexicalConfig(language="french", stop_words=False, stemming=False),
        LexicalConfig(grams=5),
        LexicalConfig(grams=3, language="german"),
    ],
)
def test_terms_are_those_of_bm25s(config: LexicalConfig) -> None:
    texts = [
        "The QUICK brown foxes' running, x y2 naïve_ÉTÉ 3.14",
        "Die Häuser und die Straßen",
        "ΑΣ it's İstanbul",
        "",
    ]
    analyzer = Analyzer(config)
    assert [analyzer.terms(text) for text in texts] == tokens(texts, config)


def test_analyses_that_differ_have_different_ids() -> None:
    configs = [
        LexicalConfig(),
        LexicalConfig(language="german"),
        LexicalConfig(stemming=False),
        LexicalConfig(stop_words=False),
        LexicalConfig(grams=4),
        LexicalConfig(grams=5),
    ]
    assert len({Analyzer(config).analysis_id for config in configs}) == len(configs)
    assert Analyzer(LexicalConfig(k1=2, b=0)).analysis_id == Analyzer(LexicalConfig()).analysis_id


@pytest.mark.parametrize(
    ("config", "sentence"),
    [
        (
            LexicalConfig(language="japanese"),
            "'japanese', which has no stemmer and no stop words here; set lexical.stemming and .*; lexical.grams: 5 ",
        ),
        (LexicalConfig(language="finnish"), "'finnish', which has no stop words here; set lexical.stop_words to false"),
        (
            LexicalConfig(language="English"),
            "'English', which has no stemmer and no stop words here; .* or name one of danish, dutch, english",
        ),
    ],
)
def test_a_language_without_stemmer_or_stop_words_is_refused(config: LexicalConfig, sentence: str) -> None:
    with pytest.raises(RecipeError, match=sentence):
        check_language(config)
    check_language(config.model_copy(update={"stemming": False, "stop_words": False}))
    check_language(config.model_copy(update={"grams": 5, "stop_words": False}))


def test_pieces_of_words_find_other_endings_and_parts_of_compounds() -> None:
    texts = ["shutil.copytree", "Die Straßenbahnhaltestelle", "a longer list"]
    live = np.ones(len(texts), np.bool_)
    config = LexicalConfig(grams=5)
    analyzer = Analyzer(config)
    index = Bm25({0: (invert(texts, analyzer), live)}, config.k1, config.b)
    questions = ["copy a tree", "Haltestellen", "the longest of all lists"]
    found = index.search([term_hashes(analyzer.terms(question)) for question in questions], 1)
    assert found.ids_QK[:, 0].tolist() == [0, 1, 2]
    assert found.terms_Q == [len(analyzer.terms(question)) for question in questions]


def test_a_stored_part_is_mapped_as_it_was_written(tmp_path: Path) -> None:
    texts = [*TEXTS, "w5 " * 70_000]  # a count and a length beyond 16 bits
    made = invert(texts, Analyzer(LexicalConfig()))
    for name in ("a", "b"):
        write_postings(made, tmp_path / name)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    mapped = map_postings(tmp_path / "a", len(texts), "a")
    for name, array in vars(made).items():
        np.testing.assert_array_equal(getattr(mapped, name), array)
        assert getattr(mapped, name).dtype == array.dtype
    assert int(mapped.lengths[-1]) == 70_000
    with pytest.raises(IntegrityError, match="a has 124 rows, and its segment 9"):
        map_postings(tmp_path / "a", 9, "a")
    write_postings(replace(made, order=made.order[:-1]), tmp_path / "short")  # type: ignore[index]
    with pytest.raises(IntegrityError, match="short is not a lexical part: its order"):
        map_postings(tmp_path / "short", len(texts), "short")
    old = replace(made, order=None, ends=None)  # as parts were before pairs
    write_postings(old, tmp_path / "old")
    assert map_postings(tmp_path / "old", len(texts), "old").order is None
    (tmp_path / "c").write_bytes(b"\x08\0\0\0\0\0\0\0{}      ")
    with pytest.raises(IntegrityError, match="c is not a lexical part"):
        map_postings(tmp_path / "c", 9, "c")
