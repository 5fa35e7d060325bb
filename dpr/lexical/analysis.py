"""From text to terms: lower case, words of two characters or more, without stop words, stemmed.

This is what bm25s, and most of the field, do before BM25. The words are those of the regular expression `WORD`; stop
words are those of bm25s, stemmers those of Snowball (PyStemmer). In place of its stem, a word may give all its pieces
of some letters: "_copytree_" gives "_copy", "copyt", …, "tree_" (McNamee and Mayfield 2004).
"""

import hashlib
import importlib.util
import re
import runpy
from array import array
from collections.abc import Collection, Iterable, Sequence
from functools import cache
from pathlib import Path

import numpy as np
import numpy.typing as npt
import Stemmer

from dpr.errors import RecipeError
from dpr.fingerprint import fingerprint
from dpr.recipe_index import LexicalConfig

WORD = re.compile(r"(?u)\b\w\w+\b")
Hashes = npt.NDArray[np.uint64]
"""Terms are stored and compared by their BLAKE2b of 64 bits. That any two of ten million terms share a hash has a
probability of 3e-6."""
EDGE = "_"
"""Marks the start and the end of a word that is cut in pieces."""


class Analyzer:
    """Turns texts into terms, as the `lexical` section of a recipe says."""

    def __init__(self, config: LexicalConfig) -> None:
        """Raise RecipeError as `check_language` does."""
        check_language(config)
        self.stop_words = stop_words()[config.language] if config.stop_words else frozenset[str]()
        self._grams = config.grams
        # each word is stemmed once, so the stemmer needs no cache
        self._stemmer = Stemmer.Stemmer(config.language, 0) if _has_stems(config) else None
        rule = {
            "word": WORD.pattern,
            "stop_words": sorted(self.stop_words),
            "stemmer": [config.language, Stemmer.version()] if self._stemmer else None,
        }
        self.keeps_order = config.grams is None
        """Whether lexical parts hold the terms in their order, so that neighbours can be found."""
        self.analysis_id = fingerprint({**rule, "order": True} if self.keeps_order else {**rule, "grams": config.grams})
        """Fingerprint of all that a lexical part depends on beside its texts: terms of different ids never meet."""

    def terms(self, text: str) -> list[str]:
        """Return the terms of a text in their order, repetitions included."""
        return [term for word in WORD.findall(text.lower()) for term in self.terms_of(word)]

    def terms_of(self, word: str) -> list[str]:
        """Return the terms that a word in lower case gives: none if it is a stop word."""
        if word in self.stop_words:
            return []
        if self._grams is None:
            return [str(self._stemmer.stemWord(word)) if self._stemmer else word]
        whole = f"{EDGE}{word}{EDGE}"
        return [whole[first : first + self._grams] for first in range(max(1, len(whole) - self._grams + 1))]


class NumberedTerms(dict[str, int]):
    """Gives each different word of some texts a number, from 0 on, and each different term another.

    A dictionary of words, so that the terms of each are made once.
    """

    def __init__(self, analyzer: Analyzer) -> None:
        super().__init__()
        self._analyzer = analyzer
        self._numbers: dict[str, int] = {}
        self._terms, self._ends = array("i"), array("q", [0])

    def __missing__(self, word: str) -> int:
        numbers = self._numbers
        self._terms.extend(numbers.setdefault(term, len(numbers)) for term in self._analyzer.terms_of(word))
        self._ends.append(len(self._terms))
        self[word] = number = len(self)
        return number

    @property
    def hashes(self) -> Hashes:
        """Return the hashes of all terms so far, by number."""
        return term_hashes(list(self._numbers))

    def number(self, texts: Iterable[str]) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int64]]:
        """Return the numbers of all terms of some texts, one text after the other, and how many terms each text has."""
        words, ends = array("i"), array("q", [0])
        for text in texts:
            words.extend(map(self.__getitem__, WORD.findall(text.lower())))
            ends.append(len(words))
        words_M, ends_W = np.frombuffer(words, np.int32), np.frombuffer(self._ends, np.int64)
        terms_M = np.diff(ends_W)[words_M]
        before = np.concatenate([[0], np.cumsum(terms_M)])
        # the first term of each word, then the following ones
        places = np.repeat(ends_W[words_M] - before[:-1], terms_M) + np.arange(before[-1])
        return np.frombuffer(self._terms, np.int32)[places], np.diff(before[np.frombuffer(ends, np.int64)])


def term_hashes(terms: Sequence[str]) -> Hashes:
    """Return the hashes (T,) uint64 of terms."""
    digests = (hashlib.blake2b(term.encode("utf-8", "surrogatepass"), digest_size=8).digest() for term in terms)
    return np.frombuffer(b"".join(digests), "<u8").astype(np.uint64)


@cache
def stop_words() -> dict[str, frozenset[str]]:
    """Return the stop words that bm25s knows, by the English name of their language."""
    package = importlib.util.find_spec("bm25s")
    if package is None or package.origin is None:
        raise RecipeError("package bm25s, whose stop words lexical.stop_words means, is not installed; install it")
    # only this file, since the package imports JAX where that is installed, and JAX takes all memory of a GPU
    stopwords = runpy.run_path(str(Path(package.origin).with_name("stopwords.py")))
    lists = {name.removeprefix("STOPWORDS_").lower(): words for name, words in stopwords.items()}
    names = {"english": "en"} | {name: name for name in lists if name in Stemmer.algorithms()}
    return {name: frozenset(lists[own]) for name, own in names.items()}


def check_language(config: LexicalConfig) -> None:
    """Raise RecipeError for a language without the stemmer or the stop words that the recipe wants."""
    known: list[tuple[str, str, Collection[str]]] = []
    if _has_stems(config):
        known.append(("no stemmer", "lexical.stemming", Stemmer.algorithms()))
    if config.stop_words:
        known.append(("no stop words", "lexical.stop_words", stop_words()))
    lacking = [(what, field) for what, field, languages in known if config.language not in languages]
    if lacking:
        missing, fields = (" and ".join(words) for words in zip(*lacking, strict=True))
        possible = sorted(set.intersection(*(set(languages) for _, _, languages in known)))
        instead = "; lexical.grams: 5 needs no stemmer" if "lexical.stemming" in fields else ""
        raise RecipeError(
            f"lexical.language is {config.language!r}, which has {missing} here; set {fields} to false, or name one of "
            f"{', '.join(possible)}{instead}"
        )


def _has_stems(config: LexicalConfig) -> bool:
    return config.stemming and config.grams is None


def short_hashes(hashes: Hashes) -> npt.NDArray[np.uint16]:
    """Return the first 16 bits of hashes: enough to compare neighbours, of which 1 in 65,536 is taken for another."""
    return (hashes >> np.uint64(48)).astype(np.uint16)
