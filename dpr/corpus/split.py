"""Splitting documents into passages: blocks of 100 words (paper, section 4.1), disjoint or with an overlap."""

from collections.abc import Iterable, Iterator


def split_words(text: str, words: int, overlap: int) -> list[str]:
    """Split `text` into passages of `words` words, joined by single spaces.

    Each passage begins with the last `overlap` words of the one before it. Words are separated by white space, as
    `str.split` has it. Every word is in a passage, and only the last passage may be shorter.
    """
    return list(iter_passages(text.split(), words, overlap))


def iter_passages(stream: Iterable[str], words: int, overlap: int) -> Iterator[str]:
    """Yield the passages of a stream of words, holding one at a time; ValueError unless 0 <= overlap < words."""
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
