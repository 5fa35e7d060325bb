"""Splitting text into passages, against the definition in the paper's section 4.1."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dpr.corpus.split import split_words

SIZES = st.integers(1, 12).flatmap(lambda words: st.tuples(st.just(words), st.integers(0, words - 1)))


@given(st.text(), SIZES)
def test_passages_are_the_words_in_order_with_exactly_the_overlap(text: str, sizes: tuple[int, int]) -> None:
    size, overlap = sizes
    words = text.split()
    passages = [passage.split(" ") for passage in split_words(text, size, overlap)]
    assert all(len(passage) == size for passage in passages[:-1])
    assert all(0 < len(passage) <= size for passage in passages[-1:])
    assert all(len(passage) > overlap for passage in passages[1:]), "a passage without a word of its own"
    assert [word for passage in passages[:1] for word in passage] + [
        word for passage in passages[1:] for word in passage[overlap:]
    ] == words
    for before, after in pairwise(passages):
        assert before[size - overlap :] == after[:overlap]


def test_without_overlap_passages_are_disjoint_blocks() -> None:
    assert split_words("a b  c\nd\te", 2, 0) == ["a b", "c d", "e"]
    assert split_words("a b c d", 2, 1) == ["a b", "b c", "c d"]
    assert split_words(" \n", 100, 0) == []


@pytest.mark.parametrize("overlap", [-1, 3, 4])
def test_an_overlap_that_never_ends_is_refused(overlap: int) -> None:
    with pytest.raises(ValueError, match=f"overlap is {overlap}"):
        split_words("a b c d", 3, overlap)
