"""Tokenising as BERT does, by remembering the tokens of each word: several times faster than the library alone.

BERT's tokenizer first cuts at white space and punctuation, and then treats each word alone. So the tokens of a text are
those of its words, one after another. A corpus has few different words, and each of them is tokenised once.

Shapes: N texts, W words of all texts together, T tokens of all texts together.
"""

import json
import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import chain
from threading import Lock
from typing import Any

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer

MAX_CHARACTERS = 2**22
"""Characters of all remembered words: about half a million words, which take some 100 MB. Beyond it, all are
forgotten."""

_WORDS_PER_CALL = 1024
_PUNCTUATION = re.escape("!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~")
_WORD = f"[{_PUNCTUATION}]|[^ \t\n\r{_PUNCTUATION}]+"
"""Splits only where BERT always splits; BERT may split these words further, at other white space and punctuation."""


@dataclass(frozen=True)
class Ragged:
    """Tokens of N texts, one after another."""

    ids_T: npt.NDArray[np.int32]
    lengths_N: npt.NDArray[np.int64]

    def cut(self, limits_N: npt.NDArray[np.int64]) -> "Ragged":
        """Return each text cut to its limit of tokens, from its start."""
        lengths_N = np.minimum(self.lengths_N, limits_N)
        if (lengths_N == self.lengths_N).all():
            return self
        return Ragged(self.ids_T[places(starts_of(self.lengths_N), lengths_N)], lengths_N)


class Words:
    """Remembers the tokens of every word seen so far. Several threads may call it."""

    _numbers: dict[str, int]
    """Word → its number: its place in `_starts` and `_lengths`, which give the place of its tokens in `_ids`."""
    _starts: "_Grown"
    _lengths: "_Grown"
    _ids: "_Grown"
    _characters: int

    def __init__(self, tokenizer: Tokenizer, threads: int = 1) -> None:
        self._threads = threads
        self._tokenizer = Tokenizer.from_str(tokenizer.to_str())
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        # the library looks for special tokens in a text before it does anything else
        added = sorted((token["content"] for token in _settings(tokenizer)["added_tokens"]), key=len, reverse=True)
        self._find = re.compile("|".join([*map(re.escape, added), _WORD])).findall
        self._lock = Lock()
        self._forget()

    @staticmethod
    def supports(tokenizer: Tokenizer) -> bool:
        """Return whether a tokenizer first cuts at white space and punctuation, as BERT's does."""
        settings = _settings(tokenizer)
        normalizer = settings["normalizer"] or {"type": "Sequence", "normalizers": []}
        steps = {step["type"] for step in normalizer.get("normalizers", [normalizer])}
        return (
            steps <= {"BertNormalizer", "Lowercase"}
            and (settings["pre_tokenizer"] or {}).get("type") == "BertPreTokenizer"
            and settings["model"]["type"] == "WordPiece"
            and not any(token["normalized"] or token["single_word"] for token in settings["added_tokens"])
            and not any(set(token["content"]) & set(" \t\n\r") for token in settings["added_tokens"])
        )

    def tokens(self, texts: Sequence[str]) -> Ragged:
        """Return the tokens of N texts, without special ones, and not cut to a length."""
        words: list[str] = []
        counts_N = np.empty(len(texts), np.int64)
        for row, text in enumerate(texts):
            found = self._find(text)
            words += found
            counts_N[row] = len(found)
        with self._lock:
            numbers_W = self._numbers_of(words)
            lengths_W = self._lengths.values[numbers_W]
            ids_T = self._ids.values[places(self._starts.values[numbers_W], lengths_W)]
        ends_W = np.concatenate([[0], np.cumsum(lengths_W)])
        ends_N = ends_W[np.concatenate([[0], np.cumsum(counts_N)])]
        return Ragged(ids_T, np.diff(ends_N))

    def _numbers_of(self, words: list[str]) -> npt.NDArray[np.int64]:
        numbers = list(map(self._numbers.get, words))
        if None in numbers:
            self._learn(list(dict.fromkeys(word for word in words if word not in self._numbers)))
            if self._characters > MAX_CHARACTERS:
                self._forget()
                self._learn(list(dict.fromkeys(words)))
            numbers = list(map(self._numbers.get, words))
        return np.array(numbers, np.int64)

    def _learn(self, words: list[str]) -> None:
        def tokenise(first: int) -> list[list[int]]:
            some_words = words[first : first + _WORDS_PER_CALL]
            return [word.ids for word in self._tokenizer.encode_batch_fast(some_words, add_special_tokens=False)]

        calls = range(0, len(words), _WORDS_PER_CALL)
        if len(calls) == 1:  # to start a thread takes longer than to tokenise the words of a question
            found = tokenise(0)
        else:
            with ThreadPoolExecutor(self._threads) as pool:
                found = list(chain.from_iterable(pool.map(tokenise, calls)))
        lengths = np.array([len(ids) for ids in found], np.int64)
        self._numbers |= {word: number for number, word in enumerate(words, self._lengths.count)}
        self._starts.add(self._ids.count + starts_of(lengths))
        self._lengths.add(lengths)
        self._ids.add(np.array([id_ for ids in found for id_ in ids], np.int32))
        self._characters += sum(map(len, words))

    def _forget(self) -> None:
        self._numbers = {}
        self._ids, self._characters = _Grown(np.int32), 0
        self._starts, self._lengths = _Grown(np.int64), _Grown(np.int64)


class _Grown:
    """An array that grows at its end. It has room for more, so that adding a word does not copy all others."""

    def __init__(self, dtype: npt.DTypeLike) -> None:
        self.values: npt.NDArray[Any] = np.empty(_WORDS_PER_CALL, dtype)
        """The first `count` of them count."""
        self.count = 0

    def add(self, more: npt.NDArray[Any]) -> None:
        """Add values."""
        end = self.count + len(more)
        if end > len(self.values):
            self.values = np.concatenate([self.values, np.empty(max(end, len(self.values)), self.values.dtype)])
        self.values[self.count : end] = more
        self.count = end


def _settings(tokenizer: Tokenizer) -> dict[str, Any]:  # the library's JSON: values of many types
    """Return a tokenizer's own description of itself, as in tokenizer.json."""
    return dict(json.loads(tokenizer.to_str()))


def starts_of(lengths_N: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Return where each of N runs begins, if they lie one after another."""
    return np.cumsum(lengths_N) - lengths_N


def places(starts_N: npt.NDArray[np.int64], lengths_N: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Return the places (T,) of all elements of N runs, each of which begins at its own start."""
    return np.repeat(starts_N - starts_of(lengths_N), lengths_N) + np.arange(int(lengths_N.sum()))
