"""Documents into passages: disjoint blocks of 100 words (paper, section 4.1), overlapping if asked."""

from collections.abc import Iterable, Iterator


def split_words(text: str, words: int, overlap: int) -> list[str]:
    """`text` as passages of at most `words` words, joined by single spaces; `overlap` of them repeat the one before.

    Words are what white space separates (`str.split`). Every word is covered; only the last passage may be shorter.
    """
    return list(iter_passages(text.split(), words, overlap))


def iter_passages(stream: Iterable[str], words: int, overlap: int) -> Iterator[str]:
    """`split_words` of a stream of words, holding one passage at a time. ValueError unless 0 <= overlap < words."""
    if not 0 <= overlap < words:
        raise ValueError(f"overlap is {overlap}; it must be at least 0 and below words ({words})")
    held: list[str] = []
    fresh = False
    for word in stream:
        held.append(word)
        fresh = True
        if len(held) == words:
            yield " ".join(held)
            held = held[words - overlap :]
            fresh = False
    if fresh:
        yield " ".join(held)
