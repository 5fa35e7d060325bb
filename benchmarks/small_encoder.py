"""A random BERT of two layers, for benchmarks on CPUs whose subject is not encoding."""

from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from tests.tiny import make_encoder

WORDS, DIM, MAX_TOKENS = 20_000, 64, 64


def make_small_encoder(folder: Path, sentences: Iterable[list[str]]) -> dict[str, object]:
    """Make `encoder` in a folder, with the commonest words of some sentences; return the recipe's section for it."""
    counts = Counter(word.lower().strip('.,;:()"') for words in sentences for word in words)
    vocabulary = [word for word, _ in counts.most_common(WORDS)]
    make_encoder(folder / "encoder", dim=DIM, words=vocabulary, max_tokens=MAX_TOKENS)
    return {
        "model": "./encoder",
        "pooling": "mean",
        "title_join": "space",
        "max_tokens": MAX_TOKENS,
        "normalize": True,
    }
