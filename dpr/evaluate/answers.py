"""Answer matching: whether a passage answers a question.

By string as the paper does (section 5.1 and its released evaluation): the answer's words occur consecutively in the
passage, after Unicode NFD normalisation and case folding. By regular expression, as that evaluation does for
CuratedTREC: the pattern is found in the passage, whatever the case, where `^` and `$` match at lines. By id: the
passage, or its document, is the one named.
"""

import unicodedata
from collections.abc import Collection, Sequence
from functools import lru_cache

import regex

from dpr.evaluate.questions import AnswerKind, Question, QuestionSet
from dpr.search.hits import Hit

# DrQA's SimpleTokenizer: runs of letters, digits and marks, or any one other visible character
_WORD = regex.compile(r"[\p{L}\p{N}\p{M}]+|[^\p{Z}\p{C}]", regex.IGNORECASE | regex.UNICODE | regex.MULTILINE)


def words(text: str) -> list[str]:
    """Return the words and punctuation marks of `text`, NFD normalised, in lower case."""
    return [match.lower() for match in _WORD.findall(unicodedata.normalize("NFD", text))]


def has_answer(answers: Collection[str], text: str) -> bool:
    """Return whether the words of any answer occur consecutively in `text`."""
    # a space around every word makes a run of words a substring
    haystack = f" {' '.join(words(text))} "
    return any(f" {' '.join(answer)} " in haystack for answer in map(words, answers) if answer)


def matches_pattern(patterns: Sequence[str], text: str) -> bool:
    """Return whether any of the regular expressions is found in `text`."""
    normalised = unicodedata.normalize("NFD", text)
    return any(_compiled(pattern).search(normalised) is not None for pattern in patterns)


@lru_cache(maxsize=4096)
def _compiled(pattern: str) -> regex.Pattern[str]:
    flags = regex.IGNORECASE | regex.UNICODE | regex.MULTILINE
    return regex.compile(unicodedata.normalize("NFD", pattern), flags)


def names_passage(answers: Collection[str], passage_id: str) -> bool:
    """Return whether the answers name the passage, or the document that it is a numbered part of (`document#3`)."""
    return passage_id in answers or document_of(passage_id) in answers


def document_of(passage_id: str) -> str:
    """Return the document that a passage is a numbered part of; empty for other passages."""
    return passage_id.rpartition("#")[0]


def is_right(question: Question, answers_are: AnswerKind, hit: Hit) -> bool:
    """Return whether a hit answers the question."""
    if answers_are == "ids":
        return names_passage(question.answers, hit.id)
    return (has_answer if answers_are == "strings" else matches_pattern)(question.answers, hit.text)


def first_correct_rank(question: Question, answers_are: AnswerKind, hits: Sequence[Hit]) -> int | None:
    """Return the rank of the first hit that answers the question, or None."""
    return next((hit.rank for hit in hits if is_right(question, answers_are, hit)), None)


def accuracy(questions: QuestionSet, hits: Sequence[Sequence[Hit]], at: Sequence[int]) -> dict[int, float]:
    """Return the share of questions with a correct hit among the first k, for each k of `at` (paper, section 5)."""
    ranks = [
        first_correct_rank(question, questions.answers, found)
        for question, found in zip(questions.questions, hits, strict=True)
    ]
    return {k: sum(rank is not None and rank <= k for rank in ranks) / len(ranks) for k in at}
