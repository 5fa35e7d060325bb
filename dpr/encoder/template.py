"""What a tokenizer puts around the tokens of one text or of a pair, and how it cuts them to length.

Shapes: N texts or pairs, T tokens of all of them together.
"""

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer

from dpr.encoder.words import Ragged, Words, places, starts_of

Special = tuple[npt.NDArray[np.int32], npt.NDArray[np.uint8]]
"""Ids and token types of special tokens that stand together."""


@dataclass(frozen=True)
class Template:
    """Special tokens before, between and after texts; the token types of the texts; tokens in all at most."""

    specials: tuple[Special, ...]
    """One more than there are texts."""
    types: tuple[int, ...]
    """One a text."""
    most: int

    @classmethod
    def of(cls, tokenizer: Tokenizer, word: str, texts: int, most: int) -> "Template | None":
        """Read off the tokenizer's own answer for `word`, which must be one token; None if it is not so simple."""
        alone = tokenizer.encode(word, add_special_tokens=False).ids
        answer = tokenizer.encode(word, word if texts == 2 else None)
        ids, types = np.array(answer.ids, np.int32), np.array(answer.type_ids, np.uint8)
        at = np.flatnonzero(ids == alone[0]) if len(alone) == 1 else ids[:0]
        if len(at) != texts or len(ids) - texts >= most:
            return None
        bounds = [-1, *at.tolist(), len(ids)]
        specials = [(ids[a + 1 : b], types[a + 1 : b]) for a, b in itertools.pairwise(bounds)]
        return cls(tuple(specials), tuple(int(types[place]) for place in at), most)

    def apply(self, parts: list[Ragged]) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.uint8], npt.NDArray[np.int64]]:
        """Ids (T,), types (T,) and lengths (N,) of N rows, each made of one text of every part."""
        parts = _cut(parts, self.most - sum(len(ids) for ids, _ in self.specials))
        rows = len(parts[0].lengths_N)
        lengths_N = sum((part.lengths_N for part in parts), np.full(rows, sum(len(ids) for ids, _ in self.specials)))
        ids_T, types_T = np.empty(lengths_N.sum(), np.int32), np.empty(lengths_N.sum(), np.uint8)
        next_N = starts_of(lengths_N)

        def put(ids: npt.NDArray[np.int32], types: npt.NDArray[np.uint8] | int, each_N: npt.NDArray[np.int64]) -> None:
            nonlocal next_N
            at = places(next_N, each_N)
            ids_T[at], types_T[at] = ids, types
            next_N = next_N + each_N

        for number, (ids, types) in enumerate(self.specials):
            put(np.tile(ids, rows), np.tile(types, rows), np.full(rows, len(ids)))
            if number < len(parts):
                put(parts[number].ids_T, self.types[number], parts[number].lengths_N)
        return ids_T, types_T, lengths_N


Pieces = tuple[npt.NDArray[np.int32], npt.NDArray[np.uint8], npt.NDArray[np.int64]]
"""Ids (T,), types (T,) and lengths (N,)."""


def by_words(tokenizer: Tokenizer, most: int, threads: int) -> Callable[[Sequence[Any]], Pieces] | None:
    """What tokenises texts or pairs as `tokenizer` does, cut to `most` tokens, faster; None if it can't be done."""
    if not Words.suit(tokenizer):
        return None
    known = sorted(token for token in tokenizer.get_vocab() if token.isascii() and token.isalnum())
    word = next((token for token in known if tokenizer.encode(token, add_special_tokens=False).tokens == [token]), "")
    words, one, two = Words(tokenizer, threads), *(Template.of(tokenizer, word, texts, most) for texts in (1, 2))
    if one is None or two is None:
        return None

    def tokenise(inputs: Sequence[Any]) -> Pieces:
        if isinstance(inputs[0], str):
            return one.apply([words.tokens(inputs)])
        return two.apply([words.tokens(texts) for texts in zip(*inputs, strict=True)])

    return tokenise


def _cut(parts: list[Ragged], most: int) -> list[Ragged]:
    """As transformers' `longest_first`: the longer text of a pair loses tokens from its end until both are as long."""
    if len(parts) == 1:
        return [parts[0].first(np.full(len(parts[0].lengths_N), most))]
    a_N, b_N = (part.lengths_N for part in parts)
    short_N = np.minimum(a_N, b_N)
    long_N = np.where(short_N > most, short_N, np.maximum(short_N, most - short_N))
    halved_N = short_N + long_N > most
    short_N, long_N = np.where(halved_N, most // 2, short_N), np.where(halved_N, most // 2 + most % 2, long_N)
    over_N, swapped_N = a_N + b_N > most, a_N > b_N
    limits = np.where(swapped_N, long_N, short_N), np.where(swapped_N, short_N, long_N)
    return [part.first(np.where(over_N, limit, part.lengths_N)) for part, limit in zip(parts, limits, strict=True)]
