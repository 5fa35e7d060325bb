"""Sentences of passages, as questions that the passage answers."""

import re

import numpy as np

_ENDS = re.compile(r"(?<=[.!?])\s+|(?<=[。！？])|\n+")
MIN_WORDS, MAX_WORDS = 5, 40


def draw_sentence(text: str, seed: int) -> str:
    """Return a sentence of a text, drawn from those of at least MIN_WORDS words, and at most its first MAX_WORDS words.

    A text without such a sentence is returned itself, cut to the same length. The same text and seed give the same
    sentence.
    """
    sentences = [sentence.split() for sentence in _ENDS.split(text)]
    longer = [words for words in sentences if len(words) >= MIN_WORDS] or [text.split()]
    drawn = longer[int(np.random.default_rng(seed).integers(len(longer)))]
    return " ".join(drawn[:MAX_WORDS])
