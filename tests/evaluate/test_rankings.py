"""Won, lost and unanswered questions, by cases worked out by hand.

Shapes: Q questions, M metrics.
"""

import pytest

from dpr.evaluate.evaluation_report import accuracy_lines
from dpr.evaluate.metrics import Metrics, judge
from dpr.evaluate.questions import Question, QuestionSet
from dpr.evaluate.rankings import Comparison, Ranking, unanswered
from dpr.search.hits import Hit

QUESTIONS = QuestionSet(tuple(Question(f"q{n}", ("right",), str(n)) for n in range(30)), "ids")
METRICS = Metrics((1, 4), "ids")


def ranking(name: str, ranks: dict[int, int]) -> Ranking:
    """A ranking that has the right passage at these ranks, by question, and at rank 2 of all others; 0: nowhere."""
    hits = []
    for n in range(30):
        at = ranks.get(n, 2)
        hits.append([Hit(rank, -rank, "right" if rank == at else f"w{rank}", "", "") for rank in range(1, 6)])
    judged = tuple(judge(QUESTIONS, hits))
    return Ranking(name, METRICS, judged, METRICS.values(QUESTIONS.questions, judged))


A = ranking("a", {1: 1, 2: 3, 3: 0, 4: 1, 5: 5, 6: 0})
B = ranking("b", {1: 2, 2: 1, 3: 0, 4: 0, 5: 4, 6: 2})


def test_what_differs_most_comes_first() -> None:
    both = Comparison(A, B)
    assert both.most(10, won=False) == [4, 1]  # rank 1 to nothing, and to rank 2
    assert both.most(10, won=True) == [6, 2, 5]  # nothing to rank 2, rank 3 to 1, 5 to 4
    assert both.most(1, won=True) == [6]
    found = both.differences["accuracy@1"]
    assert (found.won, found.lost, found.tied) == (1, 2, 27)
    assert found.mean == pytest.approx(-1 / 30)
    assert Comparison(B, A).differences["RR@10"].mean == pytest.approx(-both.differences["RR@10"].mean)


def test_questions_that_nothing_answers() -> None:
    assert unanswered([A]) == [3, 6]
    assert unanswered([A, B]) == [3]


def test_the_line_of_accuracy_counts_first_right_hits() -> None:
    (line,) = accuracy_lines([A])
    assert list(line.ks) == [1, 2, 3, 4]
    assert [each.mean for each in line.intervals] == pytest.approx([2 / 30, 26 / 30, 27 / 30, 27 / 30])
    assert [A.intervals[f"accuracy@{k}"].mean for k in (1, 4)] == pytest.approx([2 / 30, 27 / 30])
