"""The special tokens that a tokenizer puts around one text or a pair, and how it cuts them to length.

Shapes: N texts or pairs, T tokens of all of them together.
"""

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer

from dpr.encoder.words import Ragged, Words, places, starts_of

Special = tuple[npt.NDArray[np.int32], npt.NDArray[np.uint8]]
"""Ids and token types of adjacent special tokens."""


class Pieces(NamedTuple):
    """Tokenised texts."""

    ids_T: npt.NDArray[np.int32]
    types_T: npt.NDArray[np.uint8]
    lengths_N: npt.NDArray[np.int64]
    lost_N: npt.NDArray[np.int64]
    """Tokens that each text lost to the token limit."""


@dataclass(frozen=True)
class Template:
    """The row that a tokenizer makes of the tokens of one text or of a pair."""

    specials: tuple[Special, ...]
    """Special tokens before, between and after the texts; one entry more than there are texts."""
    types: tuple[int, ...]
    """Token type of each text."""
    max_tokens: int
    """Of a row, special tokens included."""

    @classmethod
    def of(cls, tokenizer: Tokenizer, word: str, texts: int, max_tokens: int) -> "Template | None":
        """Derive the template from the tokenizer's output for `word`, which must be one token; None if impossible."""
        alone = tokenizer.encode(word, add_special_tokens=False).ids
        answer = tokenizer.encode(word, word if texts == 2 else None)
        ids, types = np.array(answer.ids, np.int32), np.array(answer.type_ids, np.uint8)
        found = np.flatnonzero(ids == alone[0]) if len(alone) == 1 else ids[:0]
        if len(found) != texts or len(ids) - texts >= max_tokens:
            return None
        bounds = [-1, *found.tolist(), len(ids)]
        specials = [(ids[a + 1 : b], types[a + 1 : b]) for a, b in itertools.pairwise(bounds)]
        return cls(tuple(specials), tuple(int(types[place]) for place in found), max_tokens)

    def apply(self, parts: list[Ragged]) -> Pieces:
        """Return the tokens of N rows, each made of one text of every part."""
        special_count = sum(len(ids) for ids, _ in self.specials)
        rows = len(parts[0].lengths_N)
        whole_N = _row_lengths(parts, special_count)
        parts = _cut(parts, self.max_tokens - special_count)
        lengths_N = _row_lengths(parts, special_count)
        ids_T, types_T = np.empty(lengths_N.sum(), np.int32), np.empty(lengths_N.sum(), np.uint8)
        next_N = starts_of(lengths_N)

        def put(ids: npt.NDArray[np.int32], types: npt.NDArray[np.uint8] | int, each_N: npt.NDArray[np.int64]) -> None:
            nonlocal next_N
            targets = places(next_N, each_N)
            ids_T[targets], types_T[targets] = ids, types
            next_N = next_N + each_N

        for number, (ids, types) in enumerate(self.specials):
            put(np.tile(ids, rows), np.tile(types, rows), np.full(rows, len(ids)))
            if number < len(parts):
                put(parts[number].ids_T, self.types[number], parts[number].lengths_N)
        return Pieces(ids_T, types_T, lengths_N, whole_N - lengths_N)


def by_words(tokenizer: Tokenizer, max_tokens: int, threads: int) -> Callable[[Sequence[Any]], Pieces] | None:
    """Return a faster equivalent of `tokenizer` for texts or pairs; None if it does not tokenise word by word."""
    if not Words.supports(tokenizer):
        return None
    known = sorted(token for token in tokenizer.get_vocab() if token.isascii() and token.isalnum())
    word = next((token for token in known if tokenizer.encode(token, add_special_tokens=False).tokens == [token]), "")
    words, one, two = Words(tokenizer, threads), *(Template.of(tokenizer, word, texts, max_tokens) for texts in (1, 2))
    if one is None or two is None:
        return None

    def tokenise(inputs: Sequence[Any]) -> Pieces:
        if isinstance(inputs[0], str):
            return one.apply([words.tokens(inputs)])
        return two.apply([words.tokens(texts) for texts in zip(*inputs, strict=True)])

    return tokenise


def _row_lengths(parts: list[Ragged], special_count: int) -> npt.NDArray[np.int64]:
    """Return the number of tokens (N,) of rows made of one text of every part, and special tokens."""
    return sum((part.lengths_N for part in parts), np.full(len(parts[0].lengths_N), special_count))


def _cut(parts: list[Ragged], limit: int) -> list[Ragged]:
    """Cut rows to `limit` tokens as transformers' `longest_first` does.

    The longer text of a pair loses tokens from its end until both are equally long; then both lose tokens.
    """
    if len(parts) == 1:
        return [parts[0].cut(np.full(len(parts[0].lengths_N), limit))]
    a_N, b_N = (part.lengths_N for part in parts)
    short_N = np.minimum(a_N, b_N)
    long_N = np.where(short_N > limit, short_N, np.maximum(short_N, limit - short_N))
    halved_N = short_N + long_N > limit
    short_N, long_N = np.where(halved_N, limit // 2, short_N), np.where(halved_N, limit // 2 + limit % 2, long_N)
    over_N, swapped_N = a_N + b_N > limit, a_N > b_N
    limits = np.where(swapped_N, long_N, short_N), np.where(swapped_N, short_N, long_N)
    return [part.cut(np.where(over_N, each, part.lengths_N)) for part, each in zip(parts, limits, strict=True)]
