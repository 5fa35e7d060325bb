"""BM25 from two sources that know nothing of segments: bm25s on all texts, and the formula."""

import math
from collections import Counter
from collections.abc import Sequence
from itertools import pairwise

import bm25s
import numpy as np
import numpy.typing as npt
import Stemmer

from dpr.recipe_index import LexicalConfig

Scores = npt.NDArray[np.float64]


def tokens(texts: Sequence[str], config: LexicalConfig) -> list[list[str]]:
    """Return the terms of texts as bm25s makes them, and where the recipe says so, the pieces of its words."""
    stemmer = Stemmer.Stemmer(config.language) if config.stemming and config.grams is None else None
    stop_words = config.language if config.stop_words else None
    made = bm25s.tokenize(list(texts), stopwords=stop_words, stemmer=stemmer, return_ids=False, show_progress=False)
    if config.grams is None:
        return [list(terms) for terms in made]
    return [[piece for word in words for piece in _pieces(f"_{word}_", config.grams)] for words in made]


def _pieces(word: str, letters: int) -> list[str]:
    """Return all runs of `letters` letters; the word itself if it is shorter."""
    return ["".join(run) for run in zip(*(word[n:] for n in range(letters)), strict=False)] or [word]


def bm25s_scores(texts: Sequence[str], questions: Sequence[str], config: LexicalConfig) -> Scores:
    """Return the scores (Q, N) of one bm25s index over all texts."""
    index = bm25s.BM25(method="lucene", k1=config.k1, b=config.b)
    index.index(tokens(texts, config), show_progress=False)
    found = []
    for terms in tokens(questions, config):
        known = [term for term in terms if term in index.vocab_dict]
        found.append(index.get_scores(known) if known else np.zeros(len(texts)))
    return np.stack(found).astype(np.float64)


def formula_scores(texts: Sequence[str], questions: Sequence[str], config: LexicalConfig) -> Scores:
    """Return the scores (Q, N) by Lucene's formula, one passage and one term at a time."""
    documents = [Counter(terms) for terms in tokens(texts, config)]
    average = sum(document.total() for document in documents) / len(documents)
    scores = np.zeros((len(questions), len(texts)))
    for q, terms in enumerate(tokens(questions, config)):
        for term in terms:
            idf = _idf(term, documents)
            for n, document in enumerate(documents):
                if term not in document:
                    continue
                norm = config.k1 * (1 - config.b + config.b * document.total() / average)
                scores[q, n] += idf * document[term] / (document[term] + norm)
    return scores


def formula_reach(texts: Sequence[str], questions: Sequence[str], config: LexicalConfig) -> Scores:
    """Return what a passage of average length would score (Q,) that holds each known term of a question once."""
    documents = [Counter(terms) for terms in tokens(texts, config)]
    known = {term for document in documents for term in document}
    norm = config.k1 * (1 - config.b + config.b * 1.0)
    return np.array(
        [
            sum(_idf(term, documents) / (1 + norm) for term in terms if term in known)
            for terms in tokens(questions, config)
        ]
    )


def formula_pairs(texts: Sequence[str], questions: Sequence[str], config: LexicalConfig) -> Scores:
    """Return the scores (Q, N) for terms that are neighbours in question and passage, one pair at a time."""
    documents = tokens(texts, config)
    counts = [Counter(terms) for terms in documents]
    average = sum(map(len, documents)) / len(documents)
    scores = np.zeros((len(questions), len(texts)))
    for q, terms in enumerate(tokens(questions, config)):
        for pair in pairwise(terms):
            weight = (_idf(pair[0], counts) + _idf(pair[1], counts)) / 2
            for n, document in enumerate(documents):
                there = sum(other == pair for other in pairwise(document))
                norm = config.k1 * (1 - config.b + config.b * len(document) / average)
                scores[q, n] += weight * there / (there + norm) if there else 0.0
    return scores


def _idf(term: str, documents: Sequence[Counter[str]]) -> float:
    frequency = sum(term in document for document in documents)
    return math.log(1 + (len(documents) - frequency + 0.5) / (frequency + 0.5))
