"""Answer matching: whether a passage answers a question.

By string as the paper does (section 5.1 and its released evaluation): the answer's words occur consecutively in the
passage, after Unicode NFD normalisation and case folding. By id: the passage, or its document, is the one named.
"""

import unicodedata
from collections.abc import Sequence

import regex

from dpr.evaluate.questions import Question, QuestionSet
from dpr.search.hits import Hit

# DrQA's SimpleTokenizer: runs of letters, digits and marks, or any one other visible character
_WORD = regex.compile(r"[\p{L}\p{N}\p{M}]+|[^\p{Z}\p{C}]", regex.IGNORECASE | regex.UNICODE | regex.MULTILINE)


def words(text: str) -> list[str]:
    """Return the words and punctuation marks of `text`, NFD normalised, in lower case."""
    return [match.lower() for match in _WORD.findall(unicodedata.normalize("NFD", text))]


def has_answer(answers: Sequence[str], text: str) -> bool:
    """Return whether the words of any answer occur consecutively in `text`."""
    # a space around every word makes a run of words a substring
    haystack = f" {' '.join(words(text))} "
    return any(f" {' '.join(answer)} " in haystack for answer in map(words, answers) if answer)


def names_passage(answers: Sequence[str], passage_id: str) -> bool:
    """Return whether the answers name the passage, or the document that it is a numbered part of (`document#3`)."""
    return passage_id in answers or passage_id.rpartition("#")[0] in answers


def first_correct_rank(question: Question, answers_are: str, hits: Sequence[Hit]) -> int | None:
    """Return the rank of the first hit that answers the question, or None."""
    for hit in hits:
        if answers_are == "strings":
            correct = has_answer(question.answers, hit.text)
        else:
            correct = names_passage(question.answers, hit.id)
        if correct:
            return hit.rank
    return None


def accuracy(questions: QuestionSet, hits: Sequence[Sequence[Hit]], at: Sequence[int]) -> dict[int, float]:
    """Return the share of questions with a correct hit among the first k, for each k of `at` (paper, section 5)."""
    ranks = [
        first_correct_rank(question, questions.answers, found)
        for question, found in zip(questions.questions, hits, strict=True)
    ]
    return {k: sum(rank is not None and rank <= k for rank in ranks) / len(ranks) for k in at}
