"""Sentences of passages."""

import pytest

from dpr.evaluate.sentences import MAX_WORDS, draw_sentence


def test_every_long_sentence_may_be_drawn_and_no_short_one() -> None:
    text = "Short one. This is the first long sentence! Is that the second one here?\nA third line without its end"
    drawn = {draw_sentence(text, seed) for seed in range(60)}
    assert drawn == {
        "This is the first long sentence!",
        "Is that the second one here?",
        "A third line without its end",
    }
    assert draw_sentence(text, 3) == draw_sentence(text, 3)


@pytest.mark.parametrize("text", ["", "two words", "Yes. No. Perhaps."])
def test_a_text_without_one_is_asked_for_by_itself(text: str) -> None:
    assert draw_sentence(text, 1) == text


def test_long_sentences_are_cut() -> None:
    words = [f"w{number}" for number in range(100)]
    assert draw_sentence(" ".join(words), 1).split() == words[:MAX_WORDS]
