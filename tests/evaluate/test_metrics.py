"""Metrics against plain formulas, cases worked out by hand, and the library's own count of successes.

Shapes: Q questions, M metrics.
"""

import math

import ir_measures
import numpy as np
import pytest

from dpr.evaluate.metrics import CUT, Metrics, judge
from dpr.evaluate.questions import Question, QuestionSet
from dpr.search.hits import Hit


def hits(*ids: str) -> list[Hit]:
    return [Hit(rank, 1.0, name, "", f"text of {name}") for rank, name in enumerate(ids, 1)]


def values(questions: QuestionSet, found: list[list[Hit]], at: tuple[int, ...]) -> dict[str, list[float]]:
    metrics = Metrics(at, questions.answers)
    values_QM = metrics.values(questions.questions, list(judge(questions, found)))
    return dict(zip(metrics.names, values_QM.T.tolist(), strict=True))


def plain(relevance: dict[str, int], ranked: list[str], last: int) -> dict[str, float]:
    """The definitions, as in textbooks; nDCG with linear gains, as in trec_eval."""
    gains = [relevance.get(name, 0) for name in ranked]
    places = [rank for rank, gain in enumerate(gains, 1) if gain]

    def dcg(values: list[int]) -> float:
        return sum(value / math.log2(1 + rank) for rank, value in enumerate(values[:CUT], 1))

    inside = [rank for rank in places if rank <= last]
    return {
        "nDCG@10": dcg(gains) / dcg(sorted(relevance.values(), reverse=True)),
        "RR@10": 1 / places[0] if places and places[0] <= CUT else 0.0,
        f"R@{last}": len(inside) / len(relevance),
        f"AP@{last}": sum(number / rank for number, rank in enumerate(inside, 1)) / len(relevance),
    }


def test_values_are_those_of_the_definitions_and_equal_scores_keep_their_order() -> None:
    rng = np.random.default_rng(0)
    passages = [f"p{number}" for number in range(60)]
    questions, found = [], []
    for number in range(200):
        right = rng.choice(passages, rng.integers(1, 6), replace=False).tolist()
        grades = tuple(rng.integers(1, 4, len(right)).tolist())
        questions.append(Question("q", tuple(right), str(number), grades))
        found.append(hits(*rng.choice(passages, rng.integers(0, 40), replace=False).tolist()))
    got = values(QuestionSet(tuple(questions), "ids"), found, (1, 5, 20))
    assert list(got) == ["accuracy@1", "accuracy@5", "accuracy@20", "nDCG@10", "RR@10", "R@20", "AP@20"]
    for number, (question, ranked) in enumerate(zip(questions, found, strict=True)):
        expected = plain(dict(question.relevance), [hit.id for hit in ranked], 20)
        assert {name: got[name][number] for name in expected} == pytest.approx(expected)
    qrels = {question.id: dict(question.relevance) for question in questions}
    run = {
        question.id: {hit.id: -float(hit.rank) for hit in ranked} or {"none": 0.0}
        for question, ranked in zip(questions, found, strict=True)
    }
    for k in (1, 5, 20):
        theirs = ir_measures.calc_aggregate([ir_measures.Success @ k], qrels, run)[ir_measures.Success @ k]
        assert np.mean(got[f"accuracy@{k}"]) == pytest.approx(theirs)


def test_a_document_counts_once_by_its_first_passage() -> None:
    questions = QuestionSet((Question("q", ("d", "x#1")),), "ids")
    got = values(questions, [hits("y", "d#4", "d#0", "x#1", "x#2")], (3,))
    # as if the ranking were y, d, x#1, x#2
    assert got["nDCG@10"][0] == pytest.approx((1 / math.log2(3) + 1 / math.log2(4)) / (1 + 1 / math.log2(3)))
    assert (got["R@3"], got["AP@3"], got["RR@10"]) == ([1.0], [pytest.approx((1 / 2 + 2 / 3) / 2)], [0.5])


@pytest.mark.parametrize("kind", ["strings", "regex"])
def test_texts_have_no_count_of_all_that_is_right(kind: str) -> None:
    questions = QuestionSet(tuple(Question("q", (answer,)) for answer in ("of b", "of c", "nowhere")), kind)
    got = values(questions, [hits("a", "b", "b2"), hits("c"), hits()], (1, 2))
    assert got == {"accuracy@1": [0.0, 1.0, 0.0], "accuracy@2": [1.0, 1.0, 0.0], "RR@10": [0.5, 1.0, 0.0]}


def test_what_is_shown_are_the_first_hits() -> None:
    (judged,) = judge(QuestionSet((Question("q", ("c",)),), "ids"), [hits("a", "b", "c", "d")])
    assert (judged.rank, judged.right) == (3, (False, False, True, False))
    assert [hit.text for hit in judged.shown] == ["text of a", "text of b", "text of c"]
    assert (Metrics((1, 5), "ids").depth, Metrics((1, 50), "ids").depth) == (10, 50)
    assert (Metrics((1, 5), "ids").chief, Metrics((1, 5), "strings").chief) == ("nDCG@10", "RR@10")
