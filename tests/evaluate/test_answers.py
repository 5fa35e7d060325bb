"""Answer matching and accuracy, by cases worked out by hand and by a plain search over word lists."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dpr.evaluate.answers import accuracy, first_correct_rank, has_answer, matches_pattern, names_passage, words
from dpr.evaluate.questions import Question, QuestionSet
from dpr.search.hits import Hit


@pytest.mark.parametrize(
    ("answer", "text", "expected"),
    [
        ("New York", "in new york, 1999", True),
        ("New York", "a newyork minute", False),
        ("york new", "new york", False),
        ("Café", "the CAFÉ was full", True),  # composed and decomposed letters are the same
        ("7.9", "measured 7.9 Mw", True),
        ("7.9", "measured 17.9 Mw", False),
        ("U.S.", "the U.S. army", True),
        ("汶川", "also 汶川 earthquake", True),
        ("", "anything", False),
        ("...", "wait ... what", True),
    ],
)
def test_has_answer(answer: str, text: str, expected: bool) -> None:
    assert has_answer([answer], text) is expected


@given(
    st.lists(st.sampled_from(["ab", "cd", "abc", "d", "."]), max_size=8),
    st.lists(st.sampled_from(["ab", "cd", "d", "."]), min_size=1, max_size=3),
)
def test_has_answer_is_a_run_of_words(text: list[str], answer: list[str]) -> None:
    n = len(answer)
    expected = any(text[start : start + n] == answer for start in range(len(text) - n + 1))
    assert has_answer([" ".join(answer)], " ".join(text)) is expected


@pytest.mark.parametrize(
    ("pattern", "text", "expected"),
    [
        (r"19\d\d", "born in 1963", True),
        (r"Ada\s+(King|Lovelace)", "ADA LOVELACE", True),  # in upper or lower case
        ("caf\u00e9", "the CAFE\u0301 was full", True),  # composed and decomposed letters are the same
        (r"york", "a newyorker", True),  # a pattern need not match whole words
        (r"^two$", "one\ntwo\nthree", True),  # lines
        (r"one.two", "one\ntwo", False),
        (r"\bcat\b", "concatenate", False),
    ],
)
def test_patterns_match_as_in_the_released_evaluation(pattern: str, text: str, expected: bool) -> None:
    assert matches_pattern([pattern], text) is expected
    assert first_correct_rank(Question("q", (pattern,)), "regex", [Hit(1, 0.0, "", "", text)]) == (
        1 if expected else None
    )


def test_words_splits_as_drqa_does() -> None:
    assert words("It's 3.5%, naïve_x") == ["it", "'", "s", "3", ".", "5", "%", ",", "nai\u0308ve", "_", "x"]


def test_ids_match_whole_passages_and_parts_of_documents() -> None:
    assert names_passage(["doc"], "doc#12")
    assert names_passage(["doc#1"], "doc#1")
    assert not names_passage(["doc#1"], "doc#12")
    assert not names_passage(["do"], "doc#1")


def test_accuracy_counts_questions_with_a_hit_within_k() -> None:
    def hits(*texts: str) -> list[Hit]:
        return [Hit(rank, 0.0, f"p{rank}", "", text) for rank, text in enumerate(texts, 1)]

    questions = QuestionSet((Question("a", ("x",)), Question("b", ("y", "z")), Question("c", ("q",))), "strings")
    found = [hits("x", "n"), hits("n", "n", "z"), hits("n")]
    assert accuracy(questions, found, [1, 2, 3]) == {1: 1 / 3, 2: 1 / 3, 3: 2 / 3}


def test_what_counts_as_correct_is_an_id_or_a_string() -> None:
    hits = [Hit(1, 0.9, "Ada", "", "Charles Babbage"), Hit(2, 0.8, "p2#3", "", "It was Ada Lovelace.")]
    assert first_correct_rank(Question("who?", ("Ada",)), "strings", hits) == 2
    assert first_correct_rank(Question("who?", ("Ada",)), "ids", hits) == 1
    assert first_correct_rank(Question("who?", ("p2",)), "ids", hits) == 2
    assert first_correct_rank(Question("who?", ("Grace",)), "strings", hits) is None
