"""What the compiled loops of BM25 work on: the words of a segment, and a block of questions that it answers at once.

A loop is compiled for each combination of types that it is given, so each is given only the arrays that it reads.

Shapes: N rows of a segment, W terms of a segment, P postings, S terms of all rows of a segment, Q questions of a block,
M terms of all of them, repetitions included, T distinct ones, R distinct terms of each question, one question after the
other, A distinct pairs of each, likewise.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from dpr.lexical.analysis import Hashes, short_hashes

Floats = npt.NDArray[np.float32]
Places = npt.NDArray[np.int64]
Unsigned = npt.NDArray[np.unsignedinteger[Any]]


class TermRows(NamedTuple):
    """Which rows of a segment have which terms."""

    terms_W: Hashes
    starts_W1: Unsigned
    rows_P: Unsigned
    norm_N: Floats
    """1 - b + b * length / average length; infinite for dead rows, which so score 0."""
    has_dead: bool


class TermCounts(NamedTuple):
    """How often the rows of a segment have their terms."""

    rows_P: Unsigned
    counts_P: Unsigned
    norm_N: Floats
    first_id: int
    """The rows have the ids from this one on."""


class TermOrder(NamedTuple):
    """The terms of the rows of a segment in their order."""

    order_S: npt.NDArray[np.uint16]
    ends_N: Unsigned
    norm_N: Floats
    first_id: int


class QuestionTerms(NamedTuple):
    """The terms of a block's questions; those of question q lie between offsets q and q + 1."""

    offsets_Q1: Places
    places_R: Places
    """Which of the block's distinct terms."""
    weights_R: Floats


class QuestionPairs(NamedTuple):
    """The pairs of a block's questions; those of question q lie between offsets q and q + 1, and ascend."""

    offsets_Q1: Places
    pairs_A: npt.NDArray[np.uint32]
    """Two terms by their short hashes, the first in the upper half of the number."""
    weights_A: Floats


class QuestionBlock:
    """Some questions, by the hashes of their terms."""

    def __init__(self, questions: Sequence[Hashes]) -> None:
        self._numbers = np.arange(len(questions) + 1)
        self._questions_M = np.repeat(self._numbers[:-1], [len(hashes) for hashes in questions])
        self._hashes_M = np.concatenate(questions)
        self.terms_T, self._places_M = np.unique(self._hashes_M, return_inverse=True)

    def distinct_terms(self, idf_T: npt.NDArray[np.float64]) -> QuestionTerms:
        """Return the terms of each question; one that it repeats weighs as often."""
        terms = max(1, len(self.terms_T))
        keys_R, repeats_R = np.unique(self._questions_M * terms + self._places_M, return_counts=True)
        places_R = keys_R % terms
        offsets_Q1 = np.searchsorted(keys_R, self._numbers * terms)
        return QuestionTerms(offsets_Q1, places_R, (repeats_R * idf_T[places_R]).astype(np.float32))

    def sums(self, values_T: Floats) -> npt.NDArray[np.float64]:
        """Return the sum of a value of each term over the terms of each question (Q,), repetitions included."""
        return np.bincount(self._questions_M, values_T[self._places_M], len(self._numbers) - 1).astype(np.float64)

    def pairs(self, idf_T: Floats) -> QuestionPairs:
        """Return the neighbours in each question, without terms whose idf is 0.

        Each weighs the mean of both idfs, and one that a question repeats as often.
        """
        idf_M, short_M = idf_T[self._places_M], short_hashes(self._hashes_M).astype(np.int64)
        same_A = self._questions_M[:-1] == self._questions_M[1:]
        known_A = same_A & (idf_M[:-1] > 0) & (idf_M[1:] > 0)
        keys_A = (self._questions_M[:-1] << 32 | short_M[:-1] << 16 | short_M[1:])[known_A]
        keys_A, places_A = np.unique(keys_A, return_inverse=True)
        weights_A = np.zeros(len(keys_A), np.float32)
        np.add.at(weights_A, places_A, ((idf_M[:-1] + idf_M[1:]) / 2)[known_A])
        return QuestionPairs(np.searchsorted(keys_A, self._numbers << 32), keys_A.astype(np.uint32), weights_A)
